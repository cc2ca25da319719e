"""Killed while it writes a report, at a random moment, a run is as it was, and the next report is whole.

Minutes long, so only where it is asked for: `KILLS=10 python -m pytest tests/faults/test_reports.py -s`.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL

import flaxresnet as fr

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("KILLS", "0"))
SEED = int(os.environ.get("KILLS_SEED", "0"))
KEPT = ("config.json", "metrics.jsonl", "checkpoints")


def contents(workdir):
    """Everything that was trained, by name."""
    files = (path for name in KEPT for path in [workdir / name, *(workdir / name).rglob("*")] if path.is_file())
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


@pytest.mark.skipif(not KILLS, reason="takes minutes; set KILLS to the number of kills")
def test_a_report_that_is_killed_again_and_again_leaves_the_run_as_it_was(data_folder, tmp_path):
    rng, workdir = random.Random(SEED), tmp_path / "run"
    fr.fit(fr.TrainConfig(data=data_folder, workdir=workdir, epochs=2, **SMALL | {"report": True}))
    trained, page = contents(workdir), (workdir / "report" / "index.html").read_text()
    # Of the network as these tests have it, the command would not know.
    program = (
        "import sys\nfrom flaxresnet.models.resnet import SIZES\n"
        "SIZES['resnet14'] = {'stage_sizes': (1,)}\nfrom flaxresnet.__main__ import entry_point\n"
        f"sys.argv = ['flaxresnet', 'report', {str(workdir)!r}]\nsys.exit(entry_point())\n"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
    whole, unfinished = time.monotonic() - start, 0
    for _ in range(KILLS):
        process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1) * whole)  # what comes before writes nothing
        process.kill()
        unfinished += process.wait() != 0
        assert contents(workdir) == trained
        assert (workdir / "report" / "index.html").read_text().rstrip().endswith("</html>")
        assert fr.Classifier.load(workdir).predict(fr.open_dataset(data_folder).test.images[0]).probability > 0
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)
    assert len((workdir / "report" / "index.html").read_text()) == pytest.approx(len(page), rel=0.1)
    left_over = len([path for path in workdir.rglob("*.*.*") if path.parent.name in ("report", "run")])
    print(
        f"\n{unfinished} reports of {KILLS} were killed, in {whole:.1f} s each; {left_over} unfinished files were left"
    )

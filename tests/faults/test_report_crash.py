"""Killed while it writes a report, a run is as it was, and the next report is whole.

Once from inside; a campaign kills processes at ten random moments, or as many as `KILLS` says, and takes minutes:
`python -m pytest --campaign tests/faults/test_report_crash.py -s`.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY_CONFIG
from PIL import Image

import flaxresnet as fr
from flaxresnet.report import text
from flaxresnet.report.collect import collect_report_data

KILLS = int(os.environ.get("KILLS", "10"))
SEED = int(os.environ.get("KILLS_SEED", "0"))
KEPT = ("config.json", "metrics.jsonl", "checkpoints")
WRITTEN = 6  # files of a report before its page: three figures in two themes
PATIENCE = 300  # seconds, for one start on a busy machine


def contents(workdir):
    """Everything that was trained, by name."""
    files = (path for name in KEPT for path in [workdir / name, *(workdir / name).rglob("*")] if path.is_file())
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


def stamps(workdir):
    """When each file of a report was written, by name, those that are not whole yet too."""
    found = {}
    for path in (workdir / "report").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just got its last name
            found[path.name] = path.stat().st_mtime_ns
    return found


def kill_after(process, workdir, files):
    """Kills a report when it has begun to write so many files: the names of those."""
    before, end = stamps(workdir), time.monotonic() + PATIENCE
    while len(begun := set(stamps(workdir).items()) - set(before.items())) < files:
        assert process.poll() is None, "the report ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    return sorted(name for name, _ in begun)


class KilledError(BaseException):
    """Nothing catches it."""


def test_killed_report_leaves_run(finished_run, data_folder, tmp_path, monkeypatch):
    """Killed where its figures are new and its page is about to be."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "report").mkdir()
    (run / "report" / "index.html").write_text("the page of before")
    trained, drawn = contents(run), []
    found = collect_report_data(run, fr.open_dataset(data_folder))

    def die(path, target):
        raise KilledError

    def draw(figure, path, dpi):
        Image.new("RGB", (2, 2)).save(path)
        drawn.append(path)

    monkeypatch.setattr(text, "save", draw)
    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KilledError):
        text.write_report(run, found)
    assert len(drawn) == WRITTEN
    assert (run / "report" / "index.html").read_text() == "the page of before"
    assert contents(run) == trained


@pytest.mark.campaign
def test_a_report_that_is_killed_again_and_again_leaves_the_run_as_it_was(data_folder, tmp_path):
    rng, workdir = random.Random(SEED), tmp_path / "run"
    fr.fit(fr.TrainConfig(data=data_folder, workdir=workdir, epochs=2, **TINY_CONFIG | {"report": True}))
    trained, page = contents(workdir), (workdir / "report" / "index.html").read_text()
    # Of the network as these tests have it, the command would not know.
    program = (
        "import sys\nfrom flaxresnet.models.resnet import SIZES\n"
        "SIZES['resnet14'] = {'stage_sizes': (1,), 'bottleneck': False}\nfrom flaxresnet.cli.main import entry_point\n"
        f"sys.argv = ['flaxresnet', 'report', {str(workdir)!r}]\nsys.exit(entry_point())\n"
    )
    for _ in range(KILLS):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
        begun = kill_after(process, workdir, rng.randint(1, WRITTEN))
        assert "index.html" not in begun
        assert contents(workdir) == trained
        assert (workdir / "report" / "index.html").read_text().rstrip().endswith("</html>")
        assert fr.Classifier.load(workdir).predict(fr.open_dataset(data_folder).test.images[0]).probability > 0
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert len((workdir / "report" / "index.html").read_text()) == pytest.approx(len(page), rel=0.1)
    left_over = len([path for path in workdir.rglob("*.*.*") if path.parent.name in ("report", "run")])
    print(f"\n{KILLS} reports were killed; {left_over} unfinished files were left")

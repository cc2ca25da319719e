"""A report that is killed while it is written leaves the run unchanged, and the next report is complete.

The fast tier simulates one kill. `python -m pytest --campaign tests/faults/test_report_crash.py -s` kills ten processes
at random moments, or as many as `KILLS` sets, and takes minutes.
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
TRAINED = ("config.json", "metrics.jsonl", "checkpoints")
FIGURES = 6  # files that a report writes before its page: three figures in two themes
TIMEOUT = 300  # seconds for one start on a busy machine


def trained_files(workdir):
    """Returns path → content of the files that training wrote."""
    paths = [path for name in TRAINED for path in (workdir / name, *(workdir / name).rglob("*"))]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in paths if path.is_file()}


def modification_times(workdir):
    """Returns name → modification time of a report's files, including temporary ones."""
    times = {}
    for path in (workdir / "report").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a temporary file that was just renamed
            times[path.name] = path.stat().st_mtime_ns
    return times


def kill_after(process, workdir, count):
    """Kills a report when it has started to write `count` files. Returns their names."""
    before = set(modification_times(workdir).items())
    end = time.monotonic() + TIMEOUT
    written = set()
    while len(written) < count:
        assert process.poll() is None, "the report ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.001)
        written = set(modification_times(workdir).items()) - before
    process.kill()
    assert process.wait() == -signal.SIGKILL
    return sorted(name for name, _ in written)


class KilledError(BaseException):
    """Simulates a killed process. No handler catches it."""


def test_killed_report_leaves_run(finished_run, data_folder, tmp_path, monkeypatch):
    """Kills a report after its figures and before its page."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    page = run / "report" / "index.html"
    page.parent.mkdir()
    page.write_text("the old page")
    trained = trained_files(run)
    drawn = []
    report_data = collect_report_data(run, fr.open_dataset(data_folder))

    def die(path, target):
        raise KilledError

    def draw(figure, path, dpi):
        Image.new("RGB", (2, 2)).save(path)
        drawn.append(path)

    monkeypatch.setattr(text, "save", draw)
    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KilledError):
        text.write_report(run, report_data)
    assert len(drawn) == FIGURES
    assert page.read_text() == "the old page"
    assert trained_files(run) == trained


@pytest.mark.campaign
def test_killed_reports_leave_run(data_folder, tmp_path):
    rng = random.Random(SEED)
    workdir = tmp_path / "run"
    page = workdir / "report" / "index.html"
    fr.fit(fr.TrainConfig(data=data_folder, workdir=workdir, epochs=2, **TINY_CONFIG | {"report": True}))
    trained = trained_files(workdir)
    length = len(page.read_text())
    # The program first shrinks the network as in the tests' own process.
    program = (
        "import sys\nfrom flaxresnet.models.resnet import SIZES\n"
        "SIZES['resnet14'] = {'stage_sizes': (1,), 'bottleneck': False}\nfrom flaxresnet.cli.main import entry_point\n"
        f"sys.argv = ['flaxresnet', 'report', {str(workdir)!r}]\nsys.exit(entry_point())\n"
    )
    for _ in range(KILLS):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
        assert "index.html" not in kill_after(process, workdir, rng.randint(1, FIGURES))
        assert trained_files(workdir) == trained
        assert page.read_text().rstrip().endswith("</html>")
        assert fr.Classifier.load(workdir).predict(fr.open_dataset(data_folder).test.images[0]).probability > 0
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert len(page.read_text()) == pytest.approx(length, rel=0.1)
    left_over = [path for path in workdir.rglob("*.*.*") if path.parent.name in ("report", "run")]
    print(f"\n{KILLS} reports were killed; {len(left_over)} temporary files remain")

"""Coverage-guided fuzzing: `pip install atheris`, then run this file with `--campaign -s`.

It takes 20 seconds per kind of file, or as many as `GUIDED` sets. `test_fuzz.py` changes files without a guide.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from fuzz_targets import READERS, write_valid_files, write_valid_weights

SECONDS = int(os.environ.get("GUIDED", "20"))
pytestmark = [pytest.mark.campaign, pytest.mark.skipif(not find_spec("atheris"), reason="needs atheris")]


@pytest.fixture(scope="module")
def originals(tmp_path_factory, data_folder, finished_run):
    folder = tmp_path_factory.mktemp("originals")
    write_valid_files(folder, data_folder, finished_run)
    if "weights.pth" in READERS:
        write_valid_weights(folder / "weights.pth")
    return folder


@pytest.mark.parametrize("name", READERS)
def test_guided_files_are_handled(name, originals, tmp_path, capsys):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / name).write_bytes((originals / name).read_bytes())
    command = [sys.executable, str(Path(__file__).with_name("coverage_fuzzer.py")), name, str(tmp_path)]
    done = subprocess.run([*command, f"-max_total_time={SECONDS}"], capture_output=True, text=True)
    failing_files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert done.returncode == 0, f"{failing_files}\n{done.stderr[-4000:]}"
    inputs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    edges = re.findall(r"cov: (\d+)", done.stderr)
    assert inputs
    assert edges
    with capsys.disabled():
        print(f"\n{name}: {inputs[1]} inputs, {edges[0]} edges covered at the start, {edges[-1]} at the end")

"""The directory of a run: `config.json`, `metrics.jsonl`, and errors if they are damaged."""

import contextlib
import json
import pathlib
import re

import pytest
from example_run import INFO, METRICS, ROWS, create_run, with_options

from flaxresnet.runs.metadata import FORMAT
from flaxresnet.runs.run_dir import RunDir
from flaxresnet.runtime.errors import UserError


def test_create_writes_readable_metadata(tmp_path):
    run_dir = create_run(tmp_path)
    assert run_dir.exists()
    assert RunDir(str(run_dir.path)).read_metadata() == INFO


def test_create_replaces_old_metadata(tmp_path):
    run_dir = create_run(tmp_path)
    run_dir.create(with_options(epochs=9))
    assert run_dir.read_metadata().config.epochs == 9
    assert sorted(path.name for path in run_dir.path.iterdir()) == ["checkpoints", "config.json", "metrics.jsonl"]


def test_read_metadata_rejects_empty_folder(tmp_path):
    assert not RunDir(tmp_path).exists()
    message = r"holds no run \(no config\.json\); give the --workdir of a finished training"
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=message) as caught:
            RunDir(folder).read_metadata()
        assert str(caught.value).startswith(str(folder))


def test_create_names_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError) as caught:
            RunDir(path).create(INFO)
        assert str(caught.value) == f"--workdir {path} cannot be written: Not a directory"


def with_fields(**fields):
    return json.dumps(INFO.to_json() | fields)


def without(field):
    return json.dumps({name: value for name, value in INFO.to_json().items() if name != field})


def with_data_field(**fields):
    return with_fields(data=INFO.data | fields)


def with_preprocessing(**fields):
    return with_fields(preprocessing=INFO.preprocessing.to_json() | fields)


DAMAGED = {  # (content of config.json, reason)
    "empty": ("", "JSONDecodeError: .+"),
    "truncated": (with_fields()[:100], "JSONDecodeError: .+"),
    "nested brackets": ("[" * 200_000, "RecursionError: .+"),
    "list": ("[]", r"TypeError: it is \[\], not an object"),
    "no format": (without("format"), "KeyError: 'format'"),
    "text format": (with_fields(format="1"), "TypeError: format is '1', not a whole number from 1"),
    "nan format": (with_fields(format=float("nan")), "TypeError: format is nan, not a whole number from 1"),
    "boolean format": (with_fields(format=True), "TypeError: format is True, not a whole number from 1"),
    "no config": (without("config"), "KeyError: 'config'"),
    "null config": (with_fields(config=None), "TypeError: config is None, not an object"),
    "list config": (with_fields(config=[]), r"TypeError: config is \[\], not an object"),
    "no class names": (without("class_names"), "KeyError: 'class_names'"),
    "text class names": (with_fields(class_names="ab"), "TypeError: class_names is 'ab', not a list of two or more .+"),
    "list class names": (
        with_fields(class_names=[[1], [2]]),
        r"TypeError: class_names is \[\[1\], \[2\]\], not a list .+",
    ),
    "equal class names": (
        with_fields(class_names=["a", "a"]),
        r"TypeError: class_names is \['a', 'a'\], .+",
    ),
    "one class name": (with_fields(class_names=["a"]), r"TypeError: .+ not a list of two or more different names"),
    "no preprocessing": (without("preprocessing"), "KeyError: 'preprocessing'"),
    "number preprocessing": (with_fields(preprocessing=5), "TypeError: preprocessing is 5, not an object"),
    "unknown preprocessing": (with_fields(preprocessing={"crop_min_area": 1}), "TypeError: .+"),
    "no versions": (without("versions"), "KeyError: 'versions'"),
    "number versions": (
        with_fields(versions={"jax": 1}),
        r"TypeError: versions is .+, not an object of texts",
    ),
    "number device": (with_fields(device=1), "TypeError: device is 1, not text"),
    "no data": (without("data"), "KeyError: 'data'"),
    "text data": (with_fields(data="x"), "TypeError: data is 'x', not an object"),
    "no data path": (with_fields(data={"source": "a"}), "KeyError: 'data without path'"),
    "number source": (with_data_field(source=1), r"TypeError: data\.source is 1, not text"),
    "number path": (with_data_field(path=5), r"TypeError: data\.path is 5, not text or null"),
    "list path": (with_data_field(path=["x"]), r"TypeError: data\.path is \['x'\], not text or null"),
    "number fingerprint": (
        with_data_field(test_fingerprint=0),
        r"TypeError: data\.test_fingerprint is 0, not text or null",
    ),
    "text count": (with_data_field(train_images="x"), r"TypeError: data\.train_images is 'x', not a whole number"),
    "negative count": (with_data_field(test_images=-1), r"TypeError: data\.test_images is -1, not a whole number"),
    "number switch": (with_data_field(streamed=0), r"TypeError: data\.streamed is 0, not true or false"),
}
INVALID = {  # (content of config.json, message)
    "unknown option": (with_fields(config={"epoch": 3}), r"unknown options \['epoch'\]; `flaxresnet train --help-all`"),
    "zero epochs": (with_fields(config={"epochs": 0}), "--epochs must be at least 1, not 0$"),
    "large width": (with_fields(config={"width": 10**30}), "--width must be at most 4096, not 10+$"),
    "indivisible width": (
        with_fields(config={"model": "resnext50_32x4d", "width": 4}),
        "--width 4 cannot be divided into the 32 groups of resnext50_32x4d; give a multiple of 16$",
    ),
    "boolean height": (with_preprocessing(height=True), "preprocessing has invalid height and width"),
    "large scale": (with_preprocessing(scale=10**400), "preprocessing has invalid scale, mean and std"),
    "boolean scale": (with_preprocessing(scale=True), "preprocessing has invalid scale, mean and std"),
    "large mean": (with_preprocessing(mean=[10**400, 0, 0]), "preprocessing has invalid scale, mean and std"),
    "number mean": (with_preprocessing(mean=5), "preprocessing has invalid scale, mean and std"),
    "text std": (with_preprocessing(std=[1, 1, "x"]), "preprocessing has invalid scale, mean and std"),
    "boolean crop": (with_preprocessing(crop_pct=True), "preprocessing has invalid crop_pct"),
    "small images": (with_preprocessing(width=8), "images of 64×8 pixels; the network needs 32×32 or more$"),
    "older format": (
        with_fields(format=FORMAT - 1),
        f"it has format {FORMAT - 1}, and this version reads format {FORMAT}; train again",
    ),
    "newer format": (json.dumps({"format": FORMAT + 1}), f"it has format {FORMAT + 1}, and this version reads"),
}


@pytest.mark.parametrize(("content", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_read_metadata_rejects_damaged_file(tmp_path, content, reason):
    assert re.fullmatch(rf"is damaged \({reason}\); restore it", metadata_error(tmp_path, content).removeprefix(" "))


@pytest.mark.parametrize(("content", "message"), INVALID.values(), ids=INVALID)
def test_read_metadata_rejects_invalid_field(tmp_path, content, message):
    assert re.match(f": {message}", metadata_error(tmp_path, content))


def metadata_error(tmp_path, content):
    """Returns the error of reading a `config.json`, after the path of the file."""
    run_dir = create_run(tmp_path)
    path = run_dir.path / "config.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        run_dir.read_metadata()
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.count("config.json") == 1
    assert "\n" not in message
    return message.removeprefix(str(path))


def test_read_metadata_rejects_binary_file(tmp_path):
    run_dir = create_run(tmp_path)
    (run_dir.path / "config.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match=r"config\.json is damaged \(UnicodeDecodeError: "):
        run_dir.read_metadata()


def test_metrics_are_written_and_appended(tmp_path):
    run_dir = create_run(tmp_path)
    assert run_dir.read_metrics() == []
    run_dir.write_metrics(ROWS[:1])
    run_dir.append_metrics(ROWS[1])
    assert run_dir.read_metrics() == ROWS
    assert [json.loads(line) for line in (run_dir.path / "metrics.jsonl").read_text().splitlines()] == ROWS


def test_append_metrics_creates_missing_file(tmp_path):
    run_dir = create_run(tmp_path)
    (run_dir.path / "metrics.jsonl").unlink()
    run_dir.append_metrics(ROWS[0])
    assert run_dir.read_metrics() == ROWS[:1]


def test_write_metrics_replaces_rows(tmp_path):
    run_dir = create_run(tmp_path)
    for rows in (ROWS, ROWS[:1], []):
        run_dir.write_metrics(rows)
        assert run_dir.read_metrics() == rows
    assert sorted(path.name for path in run_dir.path.iterdir()) == ["checkpoints", "config.json", "metrics.jsonl"]


def test_read_metrics_skips_truncated_line(tmp_path):
    run_dir = create_run(tmp_path)
    run_dir.write_metrics(ROWS)
    path = run_dir.path / "metrics.jsonl"
    complete = path.read_text()
    start = len(complete.splitlines()[0]) + 1
    for end in range(start, len(complete) - 1):  # without the closing brace
        path.write_text(complete[:end])
        assert run_dir.read_metrics() == ROWS[:1]
    path.write_text(complete[:-1])
    assert run_dir.read_metrics() == ROWS


INVALID_LINES = ['{"epoch": 2, "st', "", "null", "[1, 2]", '"epoch"', "[" * 100_000, '{"epoch": 2}', '{"step": 16}']
INVALID_LINES += [json.dumps(ROWS[1] | {"epoch": epoch}) for epoch in (None, "x", 2.0, True, 0, 10**400)]
INVALID_LINES += [json.dumps(ROWS[1] | {"step": step}) for step in ([], None, -1, True)]
INVALID_LINES += [json.dumps({key: ROWS[1][key] for key in ROWS[1] if key != missing}) for missing in ROWS[1]]
for name in METRICS:
    INVALID_LINES += [json.dumps(ROWS[1] | {name: value}) for value in (None, "x", [], True, float("nan"))]
INVALID_LINES += [json.dumps(ROWS[1] | {"test_loss": value}) for value in (float("inf"), -float("inf"), 10**400)]


def test_invalid_lines_are_backed_up(tmp_path):
    run_dir = create_run(tmp_path)
    path = run_dir.path / "metrics.jsonl"
    first, second = (json.dumps(row) for row in ROWS)
    for number, line in enumerate(INVALID_LINES, 1):
        content = f"{first}\n{line}\n{second}\n"
        path.write_text(content)
        assert run_dir.read_metrics() == ROWS, line
        backup = run_dir.path / "corrupt" / f"metrics.jsonl.{number}"
        assert run_dir.write_metrics(ROWS) == backup
        assert backup.read_text() == content
        assert path.read_text() == f"{first}\n{second}\n"
        assert run_dir.write_metrics(ROWS) is None


def test_binary_metrics_are_backed_up(tmp_path):
    run_dir = create_run(tmp_path)
    (run_dir.path / "metrics.jsonl").write_bytes(b"\xff\x85\n")
    assert run_dir.write_metrics([]) == run_dir.path / "corrupt" / "metrics.jsonl.1"


def test_truncated_line_needs_no_backup(tmp_path):
    run_dir = create_run(tmp_path)
    run_dir.write_metrics(ROWS)
    path = run_dir.path / "metrics.jsonl"
    path.write_text(path.read_text()[:-9])
    run_dir.write_metrics(run_dir.read_metrics())
    run_dir.append_metrics(ROWS[1])
    assert run_dir.read_metrics() == ROWS
    assert not (run_dir.path / "corrupt").exists()


def test_read_metrics_names_unreadable_file(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read: Is a directory"):
        RunDir(tmp_path).read_metrics()


def test_progress_needs_metrics_or_checkpoints(tmp_path):
    run_dir = create_run(tmp_path)
    path = run_dir.path / "metrics.jsonl"
    assert not run_dir.has_progress()
    path.write_text("\n")
    assert not run_dir.has_progress()
    path.write_text("x")
    assert run_dir.has_progress()
    path.unlink()
    for folder in (run_dir.checkpoints, run_dir.mid_epoch):
        (folder / "5").mkdir(parents=True)
        assert run_dir.has_progress()
        (folder / "5").rmdir()
    assert not run_dir.has_progress()


def test_rename_takes_first_unused_number(tmp_path):
    for expected in ("signs.1", "signs.2"):
        run_dir = create_run(tmp_path)
        run_dir.append_metrics(ROWS[0])
        renamed = run_dir.rename_old_run()
        assert renamed == run_dir.path.with_name(expected)
        assert not run_dir.path.exists()
        assert RunDir(renamed).read_metadata() == INFO
        assert RunDir(renamed).read_metrics() == ROWS[:1]
    (tmp_path / "runs" / "signs.1").rename(tmp_path / "runs" / "other")
    assert create_run(tmp_path).rename_old_run().name == "signs.1"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["other", "signs.1", "signs.2"]


def test_rename_keeps_dots_and_files(tmp_path):
    run_dir = RunDir(tmp_path / "lr.0.1")
    run_dir.create(INFO)
    (tmp_path / "lr.0.1.1").write_text("a file")
    assert run_dir.rename_old_run() == tmp_path / "lr.0.1.2"
    assert (tmp_path / "lr.0.1.1").read_text() == "a file"


def test_rename_of_working_directory(tmp_path, monkeypatch):
    run_dir = create_run(tmp_path)
    monkeypatch.chdir(run_dir.path)
    with contextlib.suppress(UserError):  # Windows refuses
        RunDir(".").rename_old_run()
    (remaining,) = run_dir.path.parent.iterdir()
    assert remaining.name in ("signs", "signs.1")
    assert RunDir(remaining).read_metadata() == INFO


def test_rename_names_refused_folder(tmp_path, monkeypatch):
    run_dir = create_run(tmp_path)

    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.rename", refuse)
    with pytest.raises(UserError, match=r"--workdir .*signs cannot be renamed: Permission denied"):
        run_dir.rename_old_run()


def test_run_dir_contains_checkpoints():
    run_dir = RunDir("runs/signs")
    assert run_dir.path == pathlib.Path("runs/signs")
    assert run_dir.checkpoints == pathlib.Path("runs/signs/checkpoints")

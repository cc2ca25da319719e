"""Bad files: what is read either works or is refused with a `UserError`, within seconds and without reading elsewhere.

Valid files with bytes changed, cut out or repeated, and files whose structure is whole but whose values are not. A few
in every run of the tests, the same each time; `FUZZ=5000 python -m pytest tests/faults/test_bad_files.py -s` tries that
many of each, others each time, and prints what came of them.
"""

import io
import json
import os
import random
import re
import time
import zipfile
from collections import Counter
from dataclasses import fields
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
from conftest import blobs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from readers import READERS, read_data, read_figures, read_run, write_valid_files

import flaxresnet as fr
from flaxresnet import cli
from flaxresnet.config import TrainConfig
from flaxresnet.data.array_record import read_records, write_records
from flaxresnet.data.folder import read_folder
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.interop.files import read_weights
from flaxresnet.option_checks import flag as flag_for
from flaxresnet.training.optimizer import make_augmentation, make_optimizer, make_schedule, steps_for
from flaxresnet.training.run_folder import RunInfo, check_network

FUZZ = int(os.environ.get("FUZZ", "0"))
LONGEST = 10  # seconds for one input
MOST_MEMORY = 1024  # MiB more than before, for one input
PROCESS = Path("/proc/self")  # where the system tells of a process's memory: Linux
FEW = 15
STEPS = 5000  # an epoch
FUZZED = settings(
    max_examples=FUZZ or FEW,
    deadline=None,
    derandomize=not FUZZ,
    database=None,
    suppress_health_check=[*HealthCheck],
)
TRIED: Counter[tuple[str, str]] = Counter()
WORST: Counter[str] = Counter()  # MiB


@pytest.fixture(scope="module", autouse=True)
def told(request):
    yield
    if FUZZ:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            for (what, outcome), count in sorted(TRIED.items()):
                print(f"{what}: {outcome} {count}, at most {WORST[what]:.0f} MiB more")


def peak_mebibytes():
    found = re.search(r"VmHWM:\s+(\d+) kB", (PROCESS / "status").read_text()) if PROCESS.exists() else None
    return int(found[1]) / 1024 if found else 0.0


def attempt(what, read):
    """Reads: True where that worked, False for a UserError of one sentence; nothing else may come of it."""
    if PROCESS.exists():
        (PROCESS / "clear_refs").write_text("5")  # the peak starts again from what is in use now
    start, before = time.monotonic(), peak_mebibytes()
    try:
        read()
    except fr.UserError as error:
        works = False
        if not str(error).strip():
            pytest.fail("an error without words")
    else:
        works = True
    assert time.monotonic() - start < LONGEST
    assert peak_mebibytes() - before < MOST_MEMORY
    WORST[what] = max(WORST[what], peak_mebibytes() - before)
    TRIED[what, "worked" if works else "refused"] += 1
    return works


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["set", "flip", "cut", "drop", "repeat", "number"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)


def changed(content: bytes, changes) -> bytes:
    """A file's bytes after some changes, each (kind, place as a share of the length, value)."""
    data = bytearray(content)
    for kind, share, value in changes:
        at = int(share * len(data))
        if kind == "set":
            data[at : at + 1] = bytes([value])
        elif kind == "flip":
            data[at : at + 1] = bytes([data[at] ^ (1 << value % 8)] if at < len(data) else [])
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + value]
        elif kind == "repeat":
            data[at:at] = data[at : at + value]
        else:  # a length or an offset that cannot be
            data[at : at + 8] = random.Random(value).choice([b"\xff" * 8, b"\x00" * 8, b"\x00\x00\x00\x7f" * 2])
    return bytes(data)


@pytest.fixture(scope="module")
def originals(tmp_path_factory, data_folder, finished_run):
    """The bytes of valid files, by name."""
    folder = tmp_path_factory.mktemp("originals")
    write_valid_files(folder, data_folder, finished_run)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Writes bytes to a file of a name, alone in its folder, and gives its path."""
    folder = tmp_path_factory.mktemp("fuzzed")

    def write(name: str, content: bytes):
        path = folder / name.replace(".", "-") / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("name", READERS)
@FUZZED
@given(changes=CHANGES)
def test_changed_bytes_are_read_or_refused(name, changes, originals, place):
    assert attempt(f"{name}, as it is", lambda: READERS[name](place(name, originals[name])))
    path = place(name, changed(originals[name], changes))
    attempt(f"{name}, bytes", lambda: READERS[name](path))
    assert [file.name for file in path.parent.iterdir()] == [name]  # nothing else was written


RECORDS = ("index.json", "train-labels.npy", "train-names.json", "train-00000-of-00001.array_record")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A folder of ArrayRecord files, made of pictures."""
    folder = tmp_path_factory.mktemp("records")
    for i, image in enumerate(blobs(6, seed=5).images):
        (of_class := folder / "pictures" / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(of_class / f"{i}.png")
    splits = read_folder(folder / "pictures", (32, 32), input="stream")
    (folder / "made").mkdir()
    list(write_records(folder / "made", splits, 1))
    return folder / "made"


@pytest.mark.parametrize("name", RECORDS)
@FUZZED
@given(changes=CHANGES)
def test_changed_bytes_of_records_are_read_or_refused(name, changes, records):
    original = (records / name).read_bytes()
    try:
        (records / name).write_bytes(changed(original, changes))
        attempt(f"{name}, bytes", lambda: read_records(records, (32, 32), skip_bad=0.9, input="memory"))
    finally:
        (records / name).write_bytes(original)
    assert attempt(f"{name}, as it is", lambda: read_records(records, (32, 32)))


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([[], {}, [None], [[]], "../../x", "a" * 300, [1, 2, 3], {"a": {}}, "resnet50", "tutorial", 10**9]),
)


def replaced(tree, place: float, value):
    """A tree of JSON with one of its values, at a share of all, replaced or, where it is None, left out."""
    tree = json.loads(json.dumps(tree))
    spots = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            spots.append((node, key))
            walk(node[key])

    walk(tree)
    node, key = spots[int(place * len(spots))]
    if value is None and isinstance(node, dict):
        del node[key]
    else:
        node[key] = value
    return tree


OTHER_VALUES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), LEAVES), min_size=1, max_size=3)


@FUZZED
@given(changes=OTHER_VALUES)
def test_a_runs_description_with_other_values_is_read_or_refused(changes, originals, place):
    tree = json.loads(originals["config.json"])
    for change in changes:
        tree = replaced(tree, *change)
    path = place("config.json", json.dumps(tree).encode())
    attempt("config.json, values", lambda: read_run(path))


@FUZZED
@given(changes=OTHER_VALUES)
def test_an_index_of_records_with_other_values_is_read_or_refused(changes, records):
    original = (records / "index.json").read_text()
    tree = json.loads(original)
    for change in changes:
        tree = replaced(tree, *change) if tree else tree
    try:
        (records / "index.json").write_text(json.dumps(tree))
        attempt("index.json, values", lambda: read_records(records, (32, 32), input="memory"))
    finally:
        (records / "index.json").write_text(original)


@FUZZED
@given(changes=OTHER_VALUES)
def test_figures_with_other_values_are_read_or_left_out(changes, originals, place):
    rows = [json.loads(line) for line in originals["metrics.jsonl"].splitlines()]
    for change in changes:
        rows = replaced(rows, *change)
    path = place("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    attempt("metrics.jsonl, values", lambda: read_figures(path))


@FUZZED
@given(member=st.sampled_from(["config.json", "flaxresnet.json"]), changes=OTHER_VALUES)
def test_a_keras_model_with_another_description_is_read_or_refused(member, changes, originals, place):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(originals["weights.keras"])) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == member:
                tree = json.loads(content)
                for change in changes:
                    tree = replaced(tree, *change) if tree else tree
                content = json.dumps(tree).encode()
            new.writestr(name, content)
    path = place("weights.keras", buffer.getvalue())
    attempt(f"weights.keras, values in {member}", lambda: read_weights(path))


@FUZZED
@given(changes=OTHER_VALUES)
def test_safetensors_with_another_header_are_read_or_refused(changes, originals, place):
    content = originals["weights.safetensors"]
    end = 8 + int.from_bytes(content[:8], "little")
    tree = json.loads(content[8:end])
    for change in changes:
        tree = replaced(tree, *change) if tree else tree
    header = json.dumps(tree).encode()
    path = place("weights.safetensors", len(header).to_bytes(8, "little") + header + content[end:])
    attempt("weights.safetensors, values", lambda: read_weights(path))


ARRAYS = st.tuples(
    st.sampled_from(["uint8", "int8", "int64", "uint64", "float16", "float64", "complex64", "bool", "S3", "V4"]),
    st.lists(st.sampled_from([0, 1, 2, 3, 9, 19, 32]), max_size=4),
    st.sampled_from([0, 1, 3, 255]),
    st.booleans(),
)


@FUZZED
@given(
    content=st.dictionaries(
        st.sampled_from(["train_set_x", "train_set_y", "test_set_x", "test_set_y", "list_classes"]),
        st.one_of(ARRAYS, st.none(), st.text(max_size=3)),
        max_size=5,
    ),
    whole=st.booleans(),
)
def test_arrays_of_any_kind_are_data_or_refused(content, whole, originals, place):
    path = place("data.h5", originals["data.h5"])
    with h5py.File(path, "a" if whole else "w") as file:
        for key, value in content.items():
            if key in file:
                del file[key]
            if value is None:
                file.create_group(key)
            elif isinstance(value, str):
                file[key] = value.replace("\0", "0")
            else:
                dtype, shape, fill, packed = value
                array = np.full(shape, fill).astype(dtype)
                can_be_packed = packed and array.size and array.ndim
                file.create_dataset(key, data=array, **({"compression": "gzip"} if can_be_packed else {}))
    attempt("data.h5, arrays", lambda: read_data(path))


WORDS = st.one_of(
    st.sampled_from([flag_for(field.name) for field in fields(TrainConfig)]),
    st.sampled_from(
        ["-1", "0", "1", "nan", "inf", "1e999", "9" * 30, "", "resnet50", "tutorial", "True", "--no-resume"]
    ),
    st.text(max_size=6),
)


def build(config):
    """What training makes of its options before the first step: schedules, the optimiser, shapes of all parameters."""
    check_network(config)
    schedule = make_schedule(config, STEPS)
    for step in (0, 1, STEPS):
        float(schedule(step)), float(make_augmentation(config, STEPS)(step))
    chosen = config.settings
    head = steps_for("head_epochs", chosen.head_epochs, STEPS)
    kind = chosen.optimizer, chosen.weight_decay, chosen.clip
    optimizer = make_optimizer(schedule, chosen.layer_decay, head, *kind)
    info = RunInfo(config, ("a", "b"), Preprocessing(*(config.image_size or (64, 64))), {}, {})
    images = jax.ShapeDtypeStruct(
        (config.batch_size, info.preprocessing.height, info.preprocessing.width, 3), "float32"
    )
    shapes = jax.eval_shape(info.model().init, jax.random.key(0), images)
    jax.eval_shape(optimizer.init, shapes["params"])


@pytest.mark.parametrize("value", ["0", "0.5", "1", "7", "1e6", "1e308", "9" * 30, "nan", "inf"])
@pytest.mark.parametrize("field", [field for field in fields(TrainConfig) if not isinstance(field.default, str | bool)])
def test_any_number_for_any_option_can_be_built_or_is_refused(field, value):
    name = flag_for(field.name)
    values = [value, "32"] if field.name == "image_size" else [value]

    def read():
        config = cli.parse(TrainConfig, ["--model", "resnet14", name, *values], prog="python train.py")
        config.check()
        build(config.resolve())

    attempt("a number for an option", read)


@FUZZED
@given(argv=st.lists(WORDS, max_size=6))
def test_any_flags_are_taken_or_refused(argv):
    def read():
        try:
            config = cli.parse(TrainConfig, argv, prog="python train.py")
        except SystemExit as stop:  # --help and its like
            if stop.code:
                raise
            return
        config.check()
        build(config.resolve())

    attempt("flags", read)

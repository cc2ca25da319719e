"""Bad files: what is read either works or is refused with a `UserError`, within seconds and without reading elsewhere.

Valid files with bytes changed, cut out or repeated, and files whose structure is whole but whose values are not. A few
in every run of the tests, the same each time; `python -m pytest --campaign tests/faults/test_fuzz.py -s` tries 300
of each, or as many as `FUZZ` says, others each time, and prints what came of them.
"""

import io
import json
import math
import os
import random
import re
import time
import zipfile
from collections import Counter
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import get_args, get_type_hints

import h5py
import jax
import numpy as np
import pytest
from conftest import blobs
from fuzz_targets import READERS, read_data, read_figures, read_run, write_valid_files, write_valid_weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import flaxresnet as fr
from flaxresnet.cli import parser
from flaxresnet.config.train_config import TrainConfig
from flaxresnet.config.validation import flag as flag_for
from flaxresnet.data.array_record import read_records, write_records
from flaxresnet.data.image_folder import read_folder
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.runs.metadata import RunMetadata, check_network
from flaxresnet.training.optimizer import make_optimizer
from flaxresnet.training.param_groups import learning_rate_groups
from flaxresnet.training.schedule import augmentation_schedule, make_schedule
from flaxresnet.weights.weight_files import read_weights

LONGEST = 10  # seconds for one input
MAX_MEMORY = 1024  # MiB more than before, for one input
PROCESS = Path("/proc/self")  # where the system tells of a process's memory: Linux
STEPS = 5000  # an epoch
FEW = 5  # changes of each kind of file in every run of the tests
FUZZED = settings(
    max_examples=int(os.environ.get("FUZZ", "300")),
    deadline=None,
    database=None,
    suppress_health_check=[*HealthCheck],
)
TRIED: Counter[tuple[str, str]] = Counter()
WORST: Counter[str] = Counter()  # MiB


@pytest.fixture(scope="module", autouse=True)
def told(request):
    yield
    if request.config.getoption("campaign"):
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
            pytest.fail(f"{what}: an error without words")
    except Exception as error:
        error.add_note(what)
        raise
    else:
        works = True
    assert time.monotonic() - start < LONGEST
    assert peak_mebibytes() - before < MAX_MEMORY
    WORST[what] = max(WORST[what], peak_mebibytes() - before)
    TRIED[what, "worked" if works else "refused"] += 1
    return works


KINDS = ("set", "hflip", "cut", "drop", "repeat", "number")
CHANGES = st.lists(
    st.tuples(st.sampled_from(KINDS), st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6
)


def few_changes(name):
    """Some changes of a file's bytes, one or two at a time, the same each time."""
    rng = random.Random(name)
    for count in range(FEW):
        yield [(rng.choice(KINDS), rng.random(), rng.randrange(256)) for _ in range(1 + count % 2)]


def changed(content: bytes, changes) -> bytes:
    """A file's bytes after some changes, each (kind, place as a share of the length, value)."""
    data = bytearray(content)
    for kind, share, value in changes:
        at = int(share * len(data))
        if kind == "set":
            data[at : at + 1] = bytes([value])
        elif kind == "hflip":
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
def pth(tmp_path_factory):
    """The bytes of valid weights of PyTorch."""
    pytest.importorskip("torch", reason="install torch (the `peers` extra)")
    path = tmp_path_factory.mktemp("originals") / "weights.pth"
    write_valid_weights(path)
    return path.read_bytes()


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


NAMES = [name for name in READERS if name != "weights.pth"]


def check_bytes(name, content, changes, place):
    path = place(name, changed(content, changes))
    attempt(f"{name}, bytes", lambda: READERS[name](path))
    assert [file.name for file in path.parent.iterdir()] == [name]  # nothing else was written


def check_few_bytes(name, content, place):
    assert attempt(f"{name}, as it is", lambda: READERS[name](place(name, content)))
    for changes in few_changes(name):
        check_bytes(name, content, changes, place)


def test_changed_bytes_are_read_or_refused(originals, place):
    for name in NAMES:
        check_few_bytes(name, originals[name], place)


@pytest.mark.parity
def test_changed_pth_is_refused(pth, place):
    check_few_bytes("weights.pth", pth, place)


@pytest.mark.campaign
@pytest.mark.parametrize("name", NAMES)
@FUZZED
@given(changes=CHANGES)
def test_any_bytes_are_read_or_refused(name, changes, originals, place):
    check_bytes(name, originals[name], changes, place)


@pytest.mark.campaign
@FUZZED
@given(changes=CHANGES)
def test_any_pth_is_read_or_refused(changes, pth, place):
    check_bytes("weights.pth", pth, changes, place)


RECORDS = ("index.json", "train-labels.npy", "train-names.json", "train-00000-of-00001.array_record")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A folder of ArrayRecord files, made of pictures."""
    folder = tmp_path_factory.mktemp("records")
    for i, image in enumerate(blobs(6, seed=5).images):
        (of_class := folder / "pictures" / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(of_class / f"{i}.png")
    splits = read_folder(folder / "pictures", ReadOptions(image_size=(32, 32), input="stream"))
    (folder / "made").mkdir()
    list(write_records(folder / "made", splits, 1))
    return folder / "made"


def check_records(records, name, what, content):
    """Reads the records with another content of one of their files, and then as they were."""
    original = (records / name).read_bytes()
    try:
        (records / name).write_bytes(content)
        lenient = ReadOptions(image_size=(32, 32), input="memory", max_corrupt_fraction=0.9)
        attempt(f"{name}, {what}", lambda: read_records(records, lenient))
    finally:
        (records / name).write_bytes(original)
    assert attempt(f"{name}, as it is", lambda: read_records(records, ReadOptions(image_size=(32, 32))))


def test_changed_bytes_of_records_are_read_or_refused(records):
    for name in RECORDS:
        for changes in few_changes(name):
            check_records(records, name, "bytes", changed((records / name).read_bytes(), changes))


@pytest.mark.campaign
@pytest.mark.parametrize("name", RECORDS)
@FUZZED
@given(changes=CHANGES)
def test_any_records_are_read_or_refused(name, changes, records):
    check_records(records, name, "bytes", changed((records / name).read_bytes(), changes))


ODD = [[], {}, [None], [[]], "../../x", "a" * 300, [1, 2, 3], {"a": {}}, "resnet50", "tutorial", 10**9]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(ODD),
)
OTHER_VALUES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), LEAVES), min_size=1, max_size=3)


def few_other_values(name):
    """Some values for places in a tree of JSON, as `OTHER_VALUES` has them, the same each time."""
    rng = random.Random(name)
    for value in [None, True, -(2**70), 0, math.nan, 0.5, "é", *ODD]:
        yield [(rng.random(), value)]


def replaced(tree, place: float, value):
    """A tree of JSON with one of its values, at a share of all, replaced or, where it is None, left out."""
    tree = json.loads(json.dumps(tree))
    spots = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            spots.append((node, key))
            walk(node[key])

    walk(tree)
    if not spots:
        return tree
    node, key = spots[int(place * len(spots))]
    if value is None and isinstance(node, dict):
        del node[key]
    else:
        node[key] = value
    return tree


def with_other_values(text, changes):
    """A text of JSON with values replaced."""
    tree = json.loads(text)
    for change in changes:
        tree = replaced(tree, *change)
    return json.dumps(tree).encode()


def check_config(changes, originals, place, records):
    path = place("config.json", with_other_values(originals["config.json"], changes))
    attempt("config.json, values", lambda: read_run(path))


def check_index(changes, originals, place, records):
    check_records(records, "index.json", "values", with_other_values((records / "index.json").read_bytes(), changes))


def check_figures(changes, originals, place, records):
    rows = [json.loads(line) for line in originals["metrics.jsonl"].splitlines()]
    for change in changes:
        rows = replaced(rows, *change)
    path = place("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    attempt("metrics.jsonl, values", lambda: read_figures(path))


def check_keras(changes, originals, place, records, member="config.json"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(originals["weights.keras"])) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, with_other_values(content, changes) if name == member else content)
    path = place("weights.keras", buffer.getvalue())
    attempt(f"weights.keras, values in {member}", lambda: read_weights(path))


def check_about(*arguments):
    check_keras(*arguments, member="flaxresnet.json")


def check_safetensors(changes, originals, place, records):
    content = originals["weights.safetensors"]
    end = 8 + int.from_bytes(content[:8], "little")
    header = with_other_values(content[8:end], changes)
    path = place("weights.safetensors", len(header).to_bytes(8, "little") + header + content[end:])
    attempt("weights.safetensors, values", lambda: read_weights(path))


VALUES = {
    "config": check_config,
    "index": check_index,
    "figures": check_figures,
    "keras": check_keras,
    "about": check_about,
    "safetensors": check_safetensors,
}


def test_other_values_are_read_or_refused(originals, place, records):
    for name, check in VALUES.items():
        for changes in few_other_values(name):
            check(changes, originals, place, records)


@pytest.mark.campaign
@pytest.mark.parametrize("name", VALUES)
@FUZZED
@given(changes=OTHER_VALUES)
def test_any_values_are_read_or_refused(name, changes, originals, place, records):
    VALUES[name](changes, originals, place, records)


DATASETS = ["train_set_x", "train_set_y", "test_set_x", "test_set_y", "list_classes"]
DTYPES = ["uint8", "int8", "int64", "uint64", "float16", "float64", "complex64", "bool", "S3", "V4"]
SIDES = [0, 1, 2, 3, 9, 19, 32]
FILLS = [0, 1, 3, 255]
ARRAYS = st.tuples(
    st.sampled_from(DTYPES), st.lists(st.sampled_from(SIDES), max_size=4), st.sampled_from(FILLS), st.booleans()
)


def check_arrays(content, whole, originals, place):
    """Reads data with some of the arrays replaced: by (type, shape, value, whether packed), a group or a text."""
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


def test_arrays_of_any_kind_are_data_or_refused(originals, place):
    rng = random.Random(0)
    for number, key in enumerate(DATASETS * 5):
        shape = [rng.choice(SIDES) for _ in range(number % 5)]
        values = [None, "text", *[(dtype, shape, rng.choice(FILLS), rng.random() < 0.5) for dtype in DTYPES]]
        check_arrays({key: values[number % len(values)]}, number % 4 > 0, originals, place)


@pytest.mark.campaign
@FUZZED
@given(
    content=st.dictionaries(
        st.sampled_from(DATASETS), st.one_of(ARRAYS, st.none(), st.text(max_size=3)), max_size=len(DATASETS)
    ),
    whole=st.booleans(),
)
def test_any_arrays_are_data_or_refused(content, whole, originals, place):
    check_arrays(content, whole, originals, place)


OTHER_WORDS = ["-1", "0", "1", "nan", "inf", "1e999", "9" * 30, "", "resnet50", "tutorial", "True", "--no-resume"]
FLAGS = [flag_for(field.name) for field in fields(TrainConfig)]
WORDS = st.one_of(st.sampled_from(FLAGS), st.sampled_from(OTHER_WORDS), st.text(max_size=6))


@cache
def shapes_of(model, images):
    """The shapes of a network's variables; most options leave the network as it is."""
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(images, "float32"))


def build(config):
    """What training makes of its options before the first step: schedules, the optimiser, shapes of all parameters."""
    check_network(config)
    schedule = make_schedule(config, STEPS)
    for step in (0, 1, STEPS):
        float(schedule(step)), float(augmentation_schedule(config, STEPS)(step))
    chosen = config.resolved_recipe
    optimizer = make_optimizer(chosen, schedule, learning_rate_groups(config, STEPS))
    info = RunMetadata(config, ("a", "b"), Preprocessing(*(config.image_size or (64, 64))), {}, {})
    images = (config.batch_size, info.preprocessing.height, info.preprocessing.width, 3)
    jax.eval_shape(optimizer.init, shapes_of(info.model(), images)["params"])


def build_checked(config):
    config.check()
    build(config.resolve())


NUMBERS = ["0", "0.5", "1", "7", "1e6", "1e308", "9" * 30, "nan", "inf"]
NUMERIC = [field.name for field in fields(TrainConfig) if not isinstance(field.default, str | bool)]


def test_numbers_for_options_are_built_or_refused():
    """Of all options; that the command line takes them is for the campaign and `test_config.py`."""
    small, built = TrainConfig(model="resnet14"), set()
    hints = get_type_hints(TrainConfig)
    real = [float(number) for number in NUMBERS]
    whole = [int(number) for number in NUMBERS if number.isdigit()]
    for name in NUMERIC:
        for number in real if float in {hints[name], *get_args(hints[name])} else [0.5, *whole]:
            changed_option = {name: (number, 32) if name == "image_size" else number}
            if attempt(f"{name} {number}", lambda changed=changed_option: build_checked(replace(small, **changed))):
                built.add(name)
    assert len(built) > 25


@pytest.mark.campaign
@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("field", NUMERIC)
def test_any_number_for_any_option_can_be_built_or_is_refused(field, value):
    values = [value, "32"] if field == "image_size" else [value]
    argv = ["--model", "resnet14", flag_for(field), *values]
    attempt("a number for an option", lambda: build_checked(parser.parse(TrainConfig, argv, prog="python train.py")))


def check_flags(argv):
    def read():
        try:
            config = parser.parse(TrainConfig, argv, prog="python train.py")
        except SystemExit as stop:  # --help and its like
            if stop.code:
                raise
            return
        build_checked(config)

    attempt("flags", read)


def test_a_few_flags_are_taken_or_refused():
    rng = random.Random(0)
    argvs = [[], ["--help"], ["x"], ["--"], ["-é"], ["--width"], ["--width", "16", "--epochs", "3"]]
    for _ in range(8):
        argvs.append([rng.choice(FLAGS), rng.choice(OTHER_WORDS)])
    for argv in argvs:
        check_flags(argv)


@pytest.mark.campaign
@FUZZED
@given(argv=st.lists(WORDS, max_size=6))
def test_any_flags_are_taken_or_refused(argv):
    check_flags(argv)

"""Malformed files and options: a reader works or raises `UserError`, within seconds and without other side effects.

The inputs are valid files with bytes changed, deleted or repeated, and well-formed files with other values. The fast
tier tries a few deterministic inputs. `python -m pytest --campaign tests/faults/test_fuzz.py -s` tries 300 random
inputs of each kind, or as many as `FUZZ` sets, and prints the outcomes.
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

import h5py
import jax
import numpy as np
import pytest
from conftest import blobs
from fuzz_targets import READERS, read_data, read_metrics, read_run, write_valid_files, write_valid_weights
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import flaxresnet as fr
from flaxresnet.cli import parser
from flaxresnet.config.train_config import TrainConfig
from flaxresnet.config.validation import flag
from flaxresnet.data.array_record import read_records, write_records
from flaxresnet.data.image_folder import read_folder
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.data.read_options import ReadOptions
from flaxresnet.runs.metadata import RunMetadata, check_network
from flaxresnet.training.optimizer import make_optimizer
from flaxresnet.training.param_groups import learning_rate_groups
from flaxresnet.training.schedule import augmentation_schedule, make_schedule
from flaxresnet.weights.weight_files import read_weights

TIMEOUT = 10  # seconds for one input
MAX_MEMORY = 1024  # MiB that one input may add
PROCESS = Path("/proc/self")  # memory statistics, on Linux only
STEPS_PER_EPOCH = 5000
CHANGES_PER_FILE = 5  # in the fast tier
FUZZED = settings(
    max_examples=int(os.environ.get("FUZZ", "300")),
    deadline=None,
    database=None,
    suppress_health_check=[*HealthCheck],
)
OUTCOMES: Counter[tuple[str, str]] = Counter()  # (input, outcome) → count
PEAK_MEMORY: Counter[str] = Counter()  # input → MiB


@pytest.fixture(scope="module", autouse=True)
def print_outcomes(request):
    """Prints the outcomes of a campaign at its end."""
    yield
    if request.config.getoption("campaign"):
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            for (name, outcome), count in sorted(OUTCOMES.items()):
                print(f"{name}: {outcome} {count}, at most {PEAK_MEMORY[name]:.0f} MiB added")


def peak_mebibytes():
    """Returns the process's peak memory since the last reset."""
    if not PROCESS.exists():
        return 0.0
    return int(re.search(r"VmHWM:\s+(\d+) kB", (PROCESS / "status").read_text())[1]) / 1024


def attempt(name, read):
    """Returns True if `read` works and False if it raises a UserError with a message. Other outcomes fail the test."""
    if PROCESS.exists():
        (PROCESS / "clear_refs").write_text("5")  # resets the peak to the memory in use
    start = time.monotonic()
    before = peak_mebibytes()
    outcome = "worked"
    try:
        read()
    except fr.UserError as error:
        outcome = "refused"
        if not str(error).strip():
            pytest.fail(f"{name}: an error without a message")
    except Exception as error:
        error.add_note(name)
        raise
    added = peak_mebibytes() - before
    assert time.monotonic() - start < TIMEOUT
    assert added < MAX_MEMORY
    PEAK_MEMORY[name] = max(PEAK_MEMORY[name], added)
    OUTCOMES[name, outcome] += 1
    return outcome == "worked"


KINDS = ("set", "flip", "truncate", "delete", "repeat", "number")
CHANGES = st.lists(
    st.tuples(st.sampled_from(KINDS), st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6
)


def deterministic_changes(name):
    """Yields lists of one or two changes of a file's bytes, the same in each run."""
    rng = random.Random(name)
    for count in range(CHANGES_PER_FILE):
        yield [(rng.choice(KINDS), rng.random(), rng.randrange(256)) for _ in range(1 + count % 2)]


def change_bytes(content: bytes, changes) -> bytes:
    """Returns a file's bytes after changes (kind, position as a fraction of the length, value)."""
    data = bytearray(content)
    for kind, position, value in changes:
        index = int(position * len(data))
        if kind == "set":
            data[index : index + 1] = bytes([value])
        elif kind == "flip":
            if index < len(data):
                data[index] ^= 1 << value % 8
        elif kind == "truncate":
            del data[index:]
        elif kind == "delete":
            del data[index : index + value]
        elif kind == "repeat":
            data[index:index] = data[index : index + value]
        else:  # an invalid length or offset
            numbers = [b"\xff" * 8, b"\x00" * 8, b"\x00\x00\x00\x7f" * 2]
            data[index : index + 8] = random.Random(value).choice(numbers)
    return bytes(data)


@pytest.fixture(scope="module")
def originals(tmp_path_factory, data_folder, finished_run):
    """Returns name → bytes of valid files."""
    folder = tmp_path_factory.mktemp("originals")
    write_valid_files(folder, data_folder, finished_run)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def pth(tmp_path_factory):
    """Returns the bytes of a valid file of PyTorch weights."""
    pytest.importorskip("torch", reason="install torch (the `peers` extra)")
    path = tmp_path_factory.mktemp("originals") / "weights.pth"
    write_valid_weights(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def write_file(tmp_path_factory):
    """Returns a function that writes a file alone in its folder and returns its path."""
    folder = tmp_path_factory.mktemp("fuzzed")

    def write(name: str, content: bytes):
        path = folder / name.replace(".", "-") / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    return write


NAMES = [name for name in READERS if name != "weights.pth"]


def check_bytes(name, content, changes, write_file):
    path = write_file(name, change_bytes(content, changes))
    attempt(f"{name}, bytes", lambda: READERS[name](path))
    assert [file.name for file in path.parent.iterdir()] == [name]  # the reader wrote no files


def check_file(name, content, write_file):
    assert attempt(f"{name}, unchanged", lambda: READERS[name](write_file(name, content)))
    for changes in deterministic_changes(name):
        check_bytes(name, content, changes, write_file)


def test_changed_bytes_are_handled(originals, write_file):
    for name in NAMES:
        check_file(name, originals[name], write_file)


@pytest.mark.parity
def test_changed_pth_is_handled(pth, write_file):
    check_file("weights.pth", pth, write_file)


@pytest.mark.campaign
@pytest.mark.parametrize("name", NAMES)
@FUZZED
@given(changes=CHANGES)
def test_random_bytes_are_handled(name, changes, originals, write_file):
    check_bytes(name, originals[name], changes, write_file)


@pytest.mark.campaign
@FUZZED
@given(changes=CHANGES)
def test_random_pth_is_handled(changes, pth, write_file):
    check_bytes("weights.pth", pth, changes, write_file)


RECORDS = ("index.json", "train-labels.npy", "train-names.json", "train-00000-of-00001.array_record")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Writes a folder of ArrayRecord files from image files."""
    folder = tmp_path_factory.mktemp("records")
    for index, image in enumerate(blobs(6, seed=5).images):
        class_folder = folder / "images" / "train" / "ab"[index % 2]
        class_folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(class_folder / f"{index}.png")
    splits = read_folder(folder / "images", ReadOptions(image_size=(32, 32), input="stream"))
    result = folder / "records"
    result.mkdir()
    list(write_records(result, splits, 1))
    return result


def check_records(records, name, changed, content):
    """Reads the records with another content of one of their files, and then unchanged."""
    original = (records / name).read_bytes()
    try:
        (records / name).write_bytes(content)
        lenient = ReadOptions(image_size=(32, 32), input="memory", max_corrupt_fraction=0.9)
        attempt(f"{name}, {changed}", lambda: read_records(records, lenient))
    finally:
        (records / name).write_bytes(original)
    assert attempt(f"{name}, unchanged", lambda: read_records(records, ReadOptions(image_size=(32, 32))))


def test_changed_records_are_handled(records):
    for name in RECORDS:
        for changes in deterministic_changes(name):
            check_records(records, name, "bytes", change_bytes((records / name).read_bytes(), changes))


@pytest.mark.campaign
@pytest.mark.parametrize("name", RECORDS)
@FUZZED
@given(changes=CHANGES)
def test_random_records_are_handled(name, changes, records):
    check_records(records, name, "bytes", change_bytes((records / name).read_bytes(), changes))


UNUSUAL_VALUES = [[], {}, [None], [[]], "../../x", "a" * 300, [1, 2, 3], {"a": {}}, "resnet50", "tutorial", 10**9]
JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(UNUSUAL_VALUES),
)
REPLACEMENTS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), JSON_VALUES), min_size=1, max_size=3)


def deterministic_replacements(name):
    """Yields lists of one replacement in JSON, the same in each run."""
    rng = random.Random(name)
    for value in [None, True, -(2**70), 0, math.nan, 0.5, "é", *UNUSUAL_VALUES]:
        yield [(rng.random(), value)]


def replace_value(tree, position: float, value):
    """Replaces a value of a JSON tree, or deletes it if the new value is None.

    Args:
      tree: the JSON tree, which stays unchanged.
      position: the position among all values as a fraction of their number.
      value: the new value.
    """
    tree = json.loads(json.dumps(tree))
    values = []

    def walk(node):
        keys = range(len(node)) if isinstance(node, list) else node if isinstance(node, dict) else ()
        for key in keys:
            values.append((node, key))
            walk(node[key])

    walk(tree)
    if not values:
        return tree
    node, key = values[int(position * len(values))]
    if value is None and isinstance(node, dict):
        del node[key]
    else:
        node[key] = value
    return tree


def replace_values(text, replacements):
    """Returns a JSON text with values replaced."""
    tree = json.loads(text)
    for position, value in replacements:
        tree = replace_value(tree, position, value)
    return json.dumps(tree).encode()


def check_config(replacements, originals, write_file, records):
    path = write_file("config.json", replace_values(originals["config.json"], replacements))
    attempt("config.json, values", lambda: read_run(path))


def check_index(replacements, originals, write_file, records):
    check_records(records, "index.json", "values", replace_values((records / "index.json").read_bytes(), replacements))


def check_metrics(replacements, originals, write_file, records):
    rows = [json.loads(line) for line in originals["metrics.jsonl"].splitlines()]
    for position, value in replacements:
        rows = replace_value(rows, position, value)
    path = write_file("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    attempt("metrics.jsonl, values", lambda: read_metrics(path))


def check_keras(replacements, originals, write_file, records, member="config.json"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(originals["weights.keras"])) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, replace_values(content, replacements) if name == member else content)
    path = write_file("weights.keras", buffer.getvalue())
    attempt(f"weights.keras, values in {member}", lambda: read_weights(path))


def check_keras_metadata(*arguments):
    check_keras(*arguments, member="flaxresnet.json")


def check_safetensors(replacements, originals, write_file, records):
    content = originals["weights.safetensors"]
    end = 8 + int.from_bytes(content[:8], "little")
    header = replace_values(content[8:end], replacements)
    path = write_file("weights.safetensors", len(header).to_bytes(8, "little") + header + content[end:])
    attempt("weights.safetensors, values", lambda: read_weights(path))


VALUE_CHECKS = {
    "config": check_config,
    "index": check_index,
    "metrics": check_metrics,
    "keras": check_keras,
    "keras metadata": check_keras_metadata,
    "safetensors": check_safetensors,
}


def test_changed_values_are_handled(originals, write_file, records):
    for name, check in VALUE_CHECKS.items():
        for replacements in deterministic_replacements(name):
            check(replacements, originals, write_file, records)


@pytest.mark.campaign
@pytest.mark.parametrize("name", VALUE_CHECKS)
@FUZZED
@given(replacements=REPLACEMENTS)
def test_random_values_are_handled(name, replacements, originals, write_file, records):
    VALUE_CHECKS[name](replacements, originals, write_file, records)


DATASETS = ["train_set_x", "train_set_y", "test_set_x", "test_set_y", "list_classes"]
DTYPES = ["uint8", "int8", "int64", "uint64", "float16", "float64", "complex64", "bool", "S3", "V4"]
SIDES = [0, 1, 2, 3, 9, 19, 32]
FILLS = [0, 1, 3, 255]
ARRAYS = st.tuples(
    st.sampled_from(DTYPES), st.lists(st.sampled_from(SIDES), max_size=4), st.sampled_from(FILLS), st.booleans()
)


def check_arrays(datasets, keep_others, originals, write_file):
    """Reads an HDF5 file with other datasets.

    Args:
      datasets: name → (dtype, shape, value, whether it is compressed), a text, or None for a group.
      keep_others: whether the other datasets of the valid file stay.
      originals: the fixture.
      write_file: the fixture.
    """
    path = write_file("data.h5", originals["data.h5"])
    with h5py.File(path, "a" if keep_others else "w") as file:
        for key, value in datasets.items():
            if key in file:
                del file[key]
            if value is None:
                file.create_group(key)
            elif isinstance(value, str):
                file[key] = value.replace("\0", "0")
            else:
                dtype, shape, fill, compressed = value
                array = np.full(shape, fill).astype(dtype)
                is_compressible = array.size and array.ndim
                file.create_dataset(key, data=array, compression="gzip" if compressed and is_compressible else None)
    attempt("data.h5, arrays", lambda: read_data(path))


def test_changed_arrays_are_handled(originals, write_file):
    rng = random.Random(0)
    for number, key in enumerate(DATASETS * 5):
        shape = [rng.choice(SIDES) for _ in range(number % 5)]
        values = [None, "text", *[(dtype, shape, rng.choice(FILLS), rng.random() < 0.5) for dtype in DTYPES]]
        check_arrays({key: values[number % len(values)]}, number % 4 > 0, originals, write_file)


@pytest.mark.campaign
@FUZZED
@given(
    datasets=st.dictionaries(
        st.sampled_from(DATASETS), st.one_of(ARRAYS, st.none(), st.text(max_size=3)), max_size=len(DATASETS)
    ),
    keep_others=st.booleans(),
)
def test_random_arrays_are_handled(datasets, keep_others, originals, write_file):
    check_arrays(datasets, keep_others, originals, write_file)


FLAG_VALUES = ["-1", "0", "1", "nan", "inf", "1e999", "9" * 30, "", "resnet50", "tutorial", "True", "--no-resume"]
FLAGS = [flag(field.name) for field in fields(TrainConfig)]
WORDS = st.one_of(st.sampled_from(FLAGS), st.sampled_from(FLAG_VALUES), st.text(max_size=6))


@cache
def shapes_of(model, images):
    """Returns the shapes of a network's variables. The cache helps because few options change the network."""
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(images, "float32"))


def build(config):
    """Builds the schedules, the optimizer and the shapes of its state, as training does before its first step."""
    check_network(config)
    schedule = make_schedule(config, STEPS_PER_EPOCH)
    for step in (0, 1, STEPS_PER_EPOCH):
        float(schedule(step))
        float(augmentation_schedule(config, STEPS_PER_EPOCH)(step))
    optimizer = make_optimizer(config.resolved_recipe, schedule, learning_rate_groups(config, STEPS_PER_EPOCH))
    info = RunMetadata(config, ("a", "b"), Preprocessing(*(config.image_size or (64, 64))), {}, {})
    images = (config.batch_size, info.preprocessing.height, info.preprocessing.width, 3)
    jax.eval_shape(optimizer.init, shapes_of(info.model(), images)["params"])


def build_checked(config):
    config.check()
    build(config.resolve())


NUMBERS = ["0", "0.5", "1", "7", "1e6", "1e308", "9" * 30, "nan", "inf"]
NUMERIC = [field.name for field in fields(TrainConfig) if not isinstance(field.default, str | bool)]


def test_numbers_of_options_are_handled():
    """Passes Python numbers. The campaign passes flags."""
    config = TrainConfig(model="resnet14")
    floats = [float(number) for number in NUMBERS]
    integers = [int(number) for number in NUMBERS if number.isdigit()]
    accepted = set()
    for name in NUMERIC:
        for number in floats + integers:
            value = (number, 32) if name == "image_size" else number
            options = {name: value}
            if attempt(f"{name} {number}", lambda options=options: build_checked(replace(config, **options))):
                accepted.add(name)
    assert len(accepted) > 25


@pytest.mark.campaign
@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("field", NUMERIC)
def test_number_flags_are_handled(field, value):
    values = [value, "32"] if field == "image_size" else [value]
    argv = ["--model", "resnet14", flag(field), *values]
    attempt("number of an option", lambda: build_checked(parser.parse(TrainConfig, argv, prog="flaxresnet train")))


def check_flags(argv):
    def read():
        try:
            config = parser.parse(TrainConfig, argv, prog="flaxresnet train")
        except SystemExit as stop:  # --help
            if stop.code:
                raise
            return
        build_checked(config)

    attempt("flags", read)


def test_flags_are_handled():
    rng = random.Random(0)
    argvs = [[], ["--help"], ["x"], ["--"], ["-é"], ["--width"], ["--width", "16", "--epochs", "3"]]
    for _ in range(8):
        argvs.append([rng.choice(FLAGS), rng.choice(FLAG_VALUES)])
    for argv in argvs:
        check_flags(argv)


@pytest.mark.campaign
@FUZZED
@given(argv=st.lists(WORDS, max_size=6))
def test_random_flags_are_handled(argv):
    check_flags(argv)

"""What a run keeps of its trustworthiness: whole, for its own weights only, or a sentence."""

import dataclasses

import numpy as np
import pytest

from flaxresnet.reliability.calibration_file import FILE, Calibration, digest
from flaxresnet.runtime.errors import UserError

TRUST = Calibration("0123abcd", 1.25, np.eye(3, dtype=np.float16), 0.0625)
IMPOSSIBLE = "its numbers cannot be"


def test_it_comes_back_as_it_went(tmp_path):
    TRUST.write(tmp_path)
    back = Calibration.read(tmp_path, "0123abcd")
    np.testing.assert_array_equal(back.references, TRUST.references)
    assert back.references.dtype == np.float16
    assert dataclasses.replace(back, references=None) == dataclasses.replace(TRUST, references=None)
    never = dataclasses.replace(TRUST, threshold=float("inf"))
    never.write(tmp_path)
    assert Calibration.read(tmp_path, "0123abcd").threshold == float("inf")


def test_of_other_weights_it_says_nothing(tmp_path):
    assert Calibration.read(tmp_path, "0123abcd") is None
    TRUST.write(tmp_path)
    assert Calibration.read(tmp_path, "other") is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:40]), ".+"),
        (lambda path: path.write_bytes(b""), ".+"),
        (lambda path: dataclasses.replace(TRUST, temperature=0.0).write(path.parent), IMPOSSIBLE),
        (lambda path: dataclasses.replace(TRUST, threshold=float("nan")).write(path.parent), IMPOSSIBLE),
        (lambda path: dataclasses.replace(TRUST, references=np.zeros(3, np.float16)).write(path.parent), IMPOSSIBLE),
    ],
    ids=["truncated", "empty", "temperature", "threshold", "shape"],
)
def test_a_damaged_file_is_a_sentence(tmp_path, damage, reason):
    TRUST.write(tmp_path)
    damage(tmp_path / FILE)
    with pytest.raises(
        UserError, match=rf"calibration.safetensors is damaged \({reason}\); `flaxresnet report .*` writes it anew"
    ):
        Calibration.read(tmp_path, "0123abcd")


def test_where_it_cannot_be_written_a_sentence_says_so(tmp_path):
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        TRUST.write(tmp_path / "nowhere")


def test_the_digest_follows_the_last_layer():
    head = {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float32)}
    one = digest({"conv1": {}, "fc3": head})
    assert one == digest({"fc3": {name: array.copy() for name, array in head.items()}})
    assert one != digest({"fc3": head | {"bias": np.full(3, 1e-6, np.float32)}})

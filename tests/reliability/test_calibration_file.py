"""Tests the calibration file: round trip, other weights, damaged files."""

from dataclasses import replace

import numpy as np
import pytest

from flaxresnet.reliability.calibration_file import FILE, Calibration, digest
from flaxresnet.runtime.errors import UserError

CALIBRATION = Calibration("0123abcd", 1.25, np.eye(3, dtype=np.float16), 0.0625)


def test_calibration_round_trip(tmp_path):
    CALIBRATION.write(tmp_path)
    result = Calibration.read(tmp_path, "0123abcd")
    np.testing.assert_array_equal(result.references, CALIBRATION.references)
    assert result.references.dtype == np.float16
    assert replace(result, references=None) == replace(CALIBRATION, references=None)
    replace(CALIBRATION, threshold=float("inf")).write(tmp_path)
    assert Calibration.read(tmp_path, "0123abcd").threshold == float("inf")


def test_calibration_of_other_weights_is_none(tmp_path):
    assert Calibration.read(tmp_path, "0123abcd") is None
    CALIBRATION.write(tmp_path)
    assert Calibration.read(tmp_path, "other") is None


@pytest.mark.parametrize("content", [lambda path: path.read_bytes()[:40], lambda path: b""], ids=["truncated", "empty"])
def test_unreadable_file_raises_user_error(tmp_path, content):
    CALIBRATION.write(tmp_path)
    path = tmp_path / FILE
    path.write_bytes(content(path))
    with pytest.raises(UserError, match=r"calibration.safetensors is damaged \(.+\); .*`flaxresnet report .*`"):
        Calibration.read(tmp_path, "0123abcd")


@pytest.mark.parametrize(
    "values", [{"temperature": 0.0}, {"threshold": float("nan")}, {"references": np.zeros(3, np.float16)}], ids=str
)
def test_invalid_value_raises_user_error(tmp_path, values):
    replace(CALIBRATION, **values).write(tmp_path)
    with pytest.raises(
        UserError,
        match=r"calibration.safetensors is damaged \(a value is out of range\); write it again with",
    ):
        Calibration.read(tmp_path, "0123abcd")


def test_write_names_oserror(tmp_path):
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        CALIBRATION.write(tmp_path / "nowhere")


def test_digest_depends_on_last_layer():
    head = {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float32)}
    expected = digest({"conv1": {}, "fc3": head})
    assert expected == digest({"fc3": {name: array.copy() for name, array in head.items()}})
    assert expected != digest({"fc3": head | {"bias": np.full(3, 1e-6, np.float32)}})

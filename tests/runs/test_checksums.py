"""What was read is what was written, or it is said."""

import zlib

import jax.numpy as jnp
import numpy as np
import pytest

import flaxresnet as fr
from flaxresnet.runs import checksums
from flaxresnet.runs.checksums import checksum, json_checksum, require_equal_checksums


def test_a_checksum_is_that_of_all_bytes_in_order():
    tree = {"a": jnp.arange(5, dtype=jnp.float32), "b": [jnp.int32(7), jnp.zeros((0, 3))]}
    expected = zlib.crc32(np.arange(5, dtype=np.float32).tobytes() + np.int32(7).tobytes())
    assert checksum(tree) == expected
    assert checksum({"a": np.arange(10, dtype=np.float32).reshape(2, 5).T}) == zlib.crc32(
        np.arange(10, dtype=np.float32).reshape(2, 5).T.tobytes()
    )


def test_every_bit_counts():
    array = np.zeros(100, np.float32)
    numbers = {checksum(array)}
    for place in range(100):
        flipped = array.copy()
        flipped.view(np.uint8)[place * 4] ^= 1
        numbers.add(checksum(flipped))
    assert len(numbers) == 101
    assert json_checksum({"a": 1, "b": 0.1}) == json_checksum({"b": 0.1, "a": 1})
    assert json_checksum({"a": 1, "b": 0.1}) != json_checksum({"a": 1, "b": 0.10000000000000002})


def test_what_differs_is_named_and_what_is_not_known_is_let_pass():
    require_equal_checksums({"params": 1, "training": 2}, {"params": 1})
    require_equal_checksums({"params": None}, {"params": 1})
    require_equal_checksums({}, {"params": 1})
    require_equal_checksums({"params": 1}, {"params": None})
    with pytest.raises(fr.UserError, match="checksum of its params does not match"):
        require_equal_checksums({"params": 1}, {"params": 2})


def test_divided_arrays_have_no_checksum(monkeypatch):
    class Divided:
        """An array of which other processes hold parts."""

        is_fully_addressable = False
        is_fully_replicated = False

    monkeypatch.setattr(checksums.jax, "Array", Divided)
    assert checksum({"a": np.zeros(3), "b": Divided()}) is None

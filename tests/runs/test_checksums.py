"""Checksums of a checkpoint's items."""

import zlib

import jax.numpy as jnp
import numpy as np
import pytest

import flaxresnet as fr
from flaxresnet.runs import checksums
from flaxresnet.runs.checksums import checksum, json_checksum, require_equal_checksums


def test_checksum_covers_bytes_in_order():
    tree = {"a": jnp.arange(5, dtype=jnp.float32), "b": [jnp.int32(7), jnp.zeros((0, 3))]}
    expected = zlib.crc32(np.arange(5, dtype=np.float32).tobytes() + np.int32(7).tobytes())
    assert checksum(tree) == expected
    transposed = np.arange(10, dtype=np.float32).reshape(2, 5).T
    assert checksum({"a": transposed}) == zlib.crc32(transposed.tobytes())


def test_checksum_changes_with_bits():
    array = np.zeros(100, np.float32)
    numbers = {checksum(array)}
    for index in range(100):
        flipped = array.copy()
        flipped.view(np.uint8)[index * 4] ^= 1
        numbers.add(checksum(flipped))
    assert len(numbers) == 101


def test_json_checksum_ignores_field_order():
    assert json_checksum({"a": 1, "b": 0.1}) == json_checksum({"b": 0.1, "a": 1})
    assert json_checksum({"a": 1, "b": 0.1}) != json_checksum({"a": 1, "b": 0.10000000000000002})


def test_different_checksums_are_named():
    require_equal_checksums({"params": 1, "training": 2}, {"params": 1})
    require_equal_checksums({"params": None}, {"params": 1})
    require_equal_checksums({}, {"params": 1})
    require_equal_checksums({"params": 1}, {"params": None})
    with pytest.raises(fr.UserError, match="the checksum of its params does not match"):
        require_equal_checksums({"params": 1}, {"params": 2})


def test_sharded_arrays_have_no_checksum(monkeypatch):
    class ShardedArray:
        """An array with shards on other processes."""

        is_fully_addressable = False
        is_fully_replicated = False

    monkeypatch.setattr(checksums.jax, "Array", ShardedArray)
    assert checksum({"a": np.zeros(3), "b": ShardedArray()}) is None

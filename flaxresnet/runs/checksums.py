"""CRC-32 checksums of a checkpoint's items. Orbax does not detect bit flips in arrays."""

import json
import zlib
from typing import Any

import jax
import numpy as np

from flaxresnet.runtime.errors import UserError


def checksum(tree: Any) -> int | None:
    """Returns the CRC-32 of a pytree's arrays in order, or None if other processes hold parts of an array."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return None
        content = np.ascontiguousarray(leaf).data.cast("B") if np.size(leaf) else b""
        total = zlib.crc32(content, total)
    return total


def json_checksum(values: dict[str, Any]) -> int:
    """Returns the CRC-32 of a JSON object, whatever the order of its fields."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def require_equal_checksums(stored: dict[str, int | None], computed: dict[str, int | None]) -> None:
    """Raises UserError if an item's computed checksum differs from its stored one. Skips items without checksums."""
    for name, number in computed.items():
        expected = stored.get(name)
        if number is not None and expected is not None and number != expected:
            raise UserError(f"the checksum of its {name} does not match")

"""Checksums of what a checkpoint holds: of a flipped bit in an array, the files' own format does not tell."""

import json
import zlib
from typing import Any

import jax
import numpy as np

from flaxresnet.runtime.errors import UserError


def checksum(tree: Any) -> int | None:
    """CRC-32 of all arrays of a pytree, in order; None where a part of one lies with other processes alone."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return None
        total = zlib.crc32(np.ascontiguousarray(leaf).data.cast("B") if np.size(leaf) else b"", total)
    return total


def checksum_of_row(row: dict[str, Any]) -> int:
    """CRC-32 of an epoch's figures, as JSON has them."""
    return zlib.crc32(json.dumps(row, sort_keys=True).encode())


def require_same(stored: dict[str, int | None], found: dict[str, int | None]) -> None:
    """Raises UserError where something that was read, by name, is not what was written."""
    for name, number in found.items():
        if None not in (number, stored.get(name)) and number != stored[name]:
            raise UserError(f"its {name} are not those that were written")

"""Packed chunks of HDF5 arrays: those that would unpack to more than they declare are found before they do.

The library makes room for whatever a chunk unpacks to, and looks at the size afterwards.
"""

import math
import threading
import zlib
from collections.abc import Callable
from typing import Any

import h5py

from flaxresnet.runtime.errors import UserError

ChunkOffset = tuple[int, ...]

DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000  # as HDF5 numbers its filters
PACKING = (DEFLATE, LZF)
KNOWN = (DEFLATE, SHUFFLE, FLETCHER32, LZF)
CHECKSUM = 8  # bytes at most, that a chunk has beside its values
DEFLATED = 1032  # bytes that one stored byte may stand for in deflate's format (zlib.net/zlib_tech.html)
HARMLESS = 2**28  # bytes; chunks that cannot unpack to more are left to the library
MAX_LZF = 2**23  # bytes of a chunk; one stored byte may stand for 88, and nothing here unpacks them to see
UNPACKED_SPARE = 2**16  # bytes by which what does not pack may grow
CHUNK_BYTES = 2**18  # packed bytes that are unpacked, and left, together


def unsupported_reason(item: h5py.Dataset) -> str | None:
    """What speaks against unpacking any of it: words that follow the array's name."""
    filters = filters_of(item)
    if unknown := set(filters) - set(KNOWN):
        return f"is packed by HDF5's filter {min(unknown)}, which is not read; `h5repack -f GZIP=4` packs it anew"
    after = [number for i, number in enumerate(filters) if not {*filters[:i]}.isdisjoint(PACKING)]
    if set(after) - {FLETCHER32}:  # so that what is stored is the packed stream itself
        return "is packed, and changed again after that; `h5repack -f GZIP=4` packs it anew"
    if LZF in filters and chunk_nbytes(item) > MAX_LZF:
        return f"is packed by LZF in chunks of {item.chunks}; `h5repack -f GZIP=4` packs it anew"
    return None


def filters_of(item: h5py.Dataset) -> list[int]:
    """What HDF5 does to a chunk before it is stored, in this order."""
    plist = item.id.get_create_plist()
    return [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]


def chunk_nbytes(item: h5py.Dataset) -> int:
    """Bytes of a chunk, once unpacked."""
    return math.prod(item.chunks) * item.id.get_type().get_size()


def max_chunk_nbytes(item: h5py.Dataset) -> int:
    """Bytes that a chunk has in the file where packing failed and made it larger."""
    return chunk_nbytes(item) * 9 // 8 + UNPACKED_SPARE


class ChunkSizeGuard:
    """Chunks of an array that might unpack to much more than they declare, by what is stored of them."""

    def __init__(self, item: h5py.Dataset) -> None:
        self._rows: dict[int, list[ChunkOffset]] = {}  # where chunks begin, by their first row
        self._wrong: dict[ChunkOffset, bool] = {}  # what was found of them
        self._lock = threading.Lock()
        if not filters_of(item):
            return
        most = max_chunk_nbytes(item)

        def look(chunk: h5py.h5d.StoreInfo) -> None:
            if chunk.size > most or chunk.size * DEFLATED > HARMLESS:
                self._rows.setdefault(chunk.chunk_offset[0], []).append(chunk.chunk_offset)

        each_chunk(item, look)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def check(self, where: str, item: h5py.Dataset, start: int, stop: int) -> None:
        """Looks at the chunks with rows from `start` to before `stop`, at each of them once.

        Raises:
          UserError: one unpacks to more than it declares; `where` names the array.
          OSError: one cannot be read.
        """
        if not self._rows:
            return
        rows = item.chunks[0]
        for place in (place for row in range(start // rows * rows, stop, rows) for place in self._rows.get(row, ())):
            with self._lock:  # so that a chunk is unpacked by one thread, and one at a time
                if place not in self._wrong:
                    self._wrong[place] = unpacks_to_more(item, place)
            if self._wrong[place]:
                raise UserError(
                    f"{where} has a chunk, at {place}, that unpacks to more than the {chunk_nbytes(item):,} bytes it "
                    "declares; store the values anew"
                )


def each_chunk(item: h5py.Dataset, look: Callable[[h5py.h5d.StoreInfo], None]) -> None:
    """Calls `look` with what HDF5 knows of each chunk that is stored."""
    if hasattr(item.id, "chunk_iter"):
        item.id.chunk_iter(look)
    else:  # an h5py that was built with an HDF5 before 1.12.3, which looks for each from the first one on
        for i in range(item.id.get_num_chunks()):
            look(item.id.get_chunk_info(i))


def unpacks_to_more(item: h5py.Dataset, place: ChunkOffset) -> bool:
    """Whether a chunk has more bytes than it declares; what it unpacks to is counted and not kept."""
    if item.id.get_chunk_info_by_coord(place).size > max_chunk_nbytes(item):
        return True
    if DEFLATE not in filters_of(item):
        return False
    _, packed = item.id.read_direct_chunk(place)
    left, unpacker = chunk_nbytes(item) + CHECKSUM, zlib.decompressobj()
    try:
        for start in range(0, len(packed), CHUNK_BYTES):
            piece = packed[start : start + CHUNK_BYTES]
            while piece and left >= 0 and not unpacker.eof:  # behind its end may be a checksum
                left -= len(unpacker.decompress(piece, CHUNK_BYTES))
                piece = unpacker.unconsumed_tail
    except zlib.error:  # damaged, or stored without this filter: the library says so, or reads it
        return False
    return left < 0

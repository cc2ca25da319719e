"""Limits on compressed chunks of HDF5 arrays: rejects chunks that decompress to more than they declare.

The HDF5 library allocates memory for whatever a chunk decompresses to, and checks the size afterwards.
"""

import math
import threading
import zlib
from collections.abc import Callable
from typing import Any

import h5py

from flaxresnet.runtime.errors import UserError

ChunkOffset = tuple[int, ...]

# Filter numbers of HDF5.
DEFLATE = 1
SHUFFLE = 2
FLETCHER32 = 3
LZF = 32000
COMPRESSION_FILTERS = (DEFLATE, LZF)
KNOWN_FILTERS = (DEFLATE, SHUFFLE, FLETCHER32, LZF)
MAX_CHECKSUM_BYTES = 8  # in a chunk besides its values
MAX_DEFLATE_RATIO = 1032  # decompressed bytes for each compressed byte (zlib.net/zlib_tech.html)
MAX_TRUSTED_BYTES = 2**28  # chunks that cannot decompress to more are not checked
MAX_LZF_CHUNK = 2**23  # bytes; LZF's ratio is at most 88, and nothing here decompresses LZF to check it
INCOMPRESSIBLE_OVERHEAD = 2**16  # bytes by which compression may enlarge incompressible data
CHUNK_BYTES = 2**18  # compressed bytes that are decompressed, and discarded, at once
REPACK = "`h5repack -f GZIP=4` compresses it again"


def unsupported_reason(array: h5py.Dataset) -> str | None:
    """Returns why an array is rejected, as a predicate to put after its name; None if it is supported."""
    filters = filters_of(array)
    unknown = set(filters) - set(KNOWN_FILTERS)
    if unknown:
        return f"is compressed by HDF5's filter {min(unknown)}, which is not supported; {REPACK}"
    is_compressed = False
    for number in filters:
        if is_compressed and number != FLETCHER32:  # else the stored bytes are not the compressed stream itself
            return f"is filtered again after its compression; {REPACK}"
        is_compressed |= number in COMPRESSION_FILTERS
    if LZF in filters and chunk_nbytes(array) > MAX_LZF_CHUNK:
        return f"is compressed by LZF in chunks of {array.chunks}; {REPACK}"
    return None


def filters_of(array: h5py.Dataset) -> list[int]:
    """Returns the numbers of the filters that HDF5 applies to a chunk before it is stored, in order."""
    plist = array.id.get_create_plist()
    return [plist.get_filter(position)[0] for position in range(plist.get_nfilters())]


def chunk_nbytes(array: h5py.Dataset) -> int:
    """Returns the bytes of a decompressed chunk."""
    return math.prod(array.chunks) * array.id.get_type().get_size()


def max_chunk_nbytes(array: h5py.Dataset) -> int:
    """Returns the largest valid size of a stored chunk, in bytes: compression may enlarge incompressible values."""
    return chunk_nbytes(array) * 9 // 8 + INCOMPRESSIBLE_OVERHEAD


class ChunkSizeGuard:
    """Checks the chunks of an array that, by their stored size, might decompress to more than they declare."""

    def __init__(self, array: h5py.Dataset) -> None:
        self._chunks: dict[int, list[ChunkOffset]] = {}  # first row → offsets of the chunks to check
        self._is_oversized: dict[ChunkOffset, bool] = {}  # of those checked before
        self._lock = threading.Lock()
        if not filters_of(array):
            return
        max_stored = max_chunk_nbytes(array)

        def add_suspect(chunk: h5py.h5d.StoreInfo) -> None:
            if chunk.size > max_stored or chunk.size * MAX_DEFLATE_RATIO > MAX_TRUSTED_BYTES:
                self._chunks.setdefault(chunk.chunk_offset[0], []).append(chunk.chunk_offset)

        each_chunk(array, add_suspect)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def check(self, name: str, array: h5py.Dataset, start: int, stop: int) -> None:
        """Checks the chunks with rows from `start` to `stop` (exclusive), each chunk once. Thread-safe.

        Raises:
          UserError: if a chunk decompresses to more than it declares; `name` is the array's, for the message.
          OSError: if a chunk cannot be read.
        """
        if not self._chunks:
            return
        rows = array.chunks[0]
        for row in range(start // rows * rows, stop, rows):
            for offset in self._chunks.get(row, ()):
                with self._lock:  # decompresses one chunk at a time, to limit memory
                    if offset not in self._is_oversized:
                        self._is_oversized[offset] = is_oversized(array, offset)
                if self._is_oversized[offset]:
                    raise UserError(
                        f"{name} has a chunk, at {offset}, that decompresses to more than the {chunk_nbytes(array):,} "
                        "bytes it declares; store the values again"
                    )


def each_chunk(array: h5py.Dataset, visit: Callable[[h5py.h5d.StoreInfo], None]) -> None:
    """Calls `visit` with HDF5's description of each stored chunk."""
    if hasattr(array.id, "chunk_iter"):
        array.id.chunk_iter(visit)
    else:  # HDF5 before 1.12.3, in which each look-up takes time linear in the number of chunks
        for number in range(array.id.get_num_chunks()):
            visit(array.id.get_chunk_info(number))


def is_oversized(array: h5py.Dataset, offset: ChunkOffset) -> bool:
    """Returns whether a chunk decompresses to more bytes than it declares. Discards the decompressed bytes."""
    if array.id.get_chunk_info_by_coord(offset).size > max_chunk_nbytes(array):
        return True
    if DEFLATE not in filters_of(array):
        return False
    _, compressed = array.id.read_direct_chunk(offset)
    remaining = chunk_nbytes(array) + MAX_CHECKSUM_BYTES
    decompressor = zlib.decompressobj()
    try:
        for start in range(0, len(compressed), CHUNK_BYTES):
            block = compressed[start : start + CHUNK_BYTES]
            while block and remaining >= 0 and not decompressor.eof:  # a checksum may follow the stream
                remaining -= len(decompressor.decompress(block, CHUNK_BYTES))
                block = decompressor.unconsumed_tail
    except zlib.error:  # damaged, or stored without this filter: HDF5 raises an error or reads it
        return False
    return remaining < 0

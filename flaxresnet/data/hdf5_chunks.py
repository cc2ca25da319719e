"""Packed chunks of HDF5 arrays: those that would unpack to more than they declare are found before they do.

The library makes room for whatever a chunk unpacks to, and looks at the size afterwards.
"""

import math
import zlib
from collections.abc import Iterable

import h5py

from flaxresnet.errors import UserError

Place = tuple[int, ...]

DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000  # as HDF5 numbers its filters
PACKING = (DEFLATE, LZF)
KNOWN = (DEFLATE, SHUFFLE, FLETCHER32, LZF)
CHECKSUM = 8  # bytes at most, that a chunk has beside its values
DEFLATED = 1032  # bytes that one stored byte may stand for in deflate's format (zlib.net/zlib_tech.html)
HARMLESS = 2**28  # bytes; chunks that cannot unpack to more are left to the library
LARGEST_LZF = 2**23  # bytes of a chunk; one stored byte may stand for 88, and nothing here unpacks them to see
UNPACKED_SPARE = 2**16  # bytes by which what does not pack may grow


def refusal(item: h5py.Dataset) -> str | None:
    """What speaks against unpacking any of it: words that follow the array's name."""
    plist = item.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if unknown := set(filters) - set(KNOWN):
        return f"is packed by HDF5's filter {min(unknown)}, which is not read; `h5repack -f GZIP=4` packs it anew"
    after = [number for i, number in enumerate(filters) if not {*filters[:i]}.isdisjoint(PACKING)]
    if set(after) - {FLETCHER32}:  # so that what is stored is the packed stream itself
        return "is packed more than once; `h5repack -f GZIP=4` packs it anew"
    if LZF in filters and declared(item) > LARGEST_LZF:
        return f"is packed by LZF in chunks of {item.chunks}; `h5repack -f GZIP=4` packs it anew"
    return None


def declared(item: h5py.Dataset) -> int:
    """Bytes of a chunk, once unpacked."""
    return math.prod(item.chunks) * item.dtype.itemsize


def suspects(item: h5py.Dataset) -> dict[int, list[Place]]:
    """Chunks that might unpack to much more than they declare, by what is stored of them.

    Returns:
      Where they begin, by the row they begin in.
    """
    if not item.chunks or not item.id.get_create_plist().get_nfilters():
        return {}
    found: dict[int, list[Place]] = {}

    def look(chunk: h5py.h5d.StoreInfo) -> None:
        if chunk.size > most_stored(item) or chunk.size * DEFLATED > HARMLESS:
            found.setdefault(chunk.chunk_offset[0], []).append(chunk.chunk_offset)

    item.id.chunk_iter(look)
    return found


def most_stored(item: h5py.Dataset) -> int:
    """Bytes that a chunk has in the file where packing failed and made it larger."""
    return declared(item) * 9 // 8 + UNPACKED_SPARE


def check_chunks(where: str, item: h5py.Dataset, places: Iterable[Place]) -> None:
    """Raises UserError where one of these chunks, of `suspects`, unpacks to more than it declares."""
    for place in places:
        if unpacks_to_more(item, place):
            raise UserError(
                f"{where} has a chunk, at {place}, that unpacks to more than the {declared(item):,} bytes it declares; "
                "store the values anew"
            )


def unpacks_to_more(item: h5py.Dataset, place: Place) -> bool:
    """Whether a chunk of `suspects` has more bytes than it declares. At most as many as it declares are unpacked."""
    if item.id.get_chunk_info_by_coord(place).size > most_stored(item):
        return True
    plist = item.id.get_create_plist()
    if DEFLATE not in [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]:
        return False
    most = declared(item) + CHECKSUM
    _, packed = item.id.read_direct_chunk(place)
    try:
        return len(zlib.decompressobj().decompress(packed, most + 1)) > most
    except zlib.error:  # damaged, or stored without this filter: the library says so, or reads it
        return False

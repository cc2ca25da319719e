"""Zip archives, in which Keras and PyTorch keep weights: what they unpack to is bounded."""

import zipfile

from flaxresnet.runtime.errors import UserError

MAX_PACKED = 4  # bytes that one of the archive may unpack to; Keras and PyTorch store, and weights hardly pack
MIN_PACKED = 2**24  # bytes that an archive may unpack to whatever its size


def check_compression_ratio(archive: zipfile.ZipFile, nbytes: int) -> None:
    """Raises UserError where an archive of so many bytes declares to unpack to far more; reading believes that."""
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(MIN_PACKED, MAX_PACKED * nbytes):
        raise UserError(f"it unpacks to {unpacked:,} bytes and has {nbytes:,}; store weights without packing them")

"""A limit on the unpacked size of zip archives, the container of `.keras` and `.pth` files."""

import zipfile

from flaxresnet.runtime.errors import UserError

MAX_COMPRESSION_RATIO = 4  # Keras and PyTorch do not compress, and weights hardly compress
ALWAYS_ALLOWED = 2**24  # bytes that an archive of any size may unpack to


def check_compression_ratio(archive: zipfile.ZipFile, nbytes: int) -> None:
    """Raises UserError if the archive declares an unpacked size that its size makes implausible (a zip bomb).

    Args:
      archive: the archive, of which only the directory is read.
      nbytes: the archive's size in bytes.
    """
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(ALWAYS_ALLOWED, MAX_COMPRESSION_RATIO * nbytes):
        raise UserError(f"the archive has {nbytes:,} bytes but unpacks to {unpacked:,}; store the weights uncompressed")

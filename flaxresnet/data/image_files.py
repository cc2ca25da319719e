"""Finds image files in a folder, without hidden files, system files and run folders."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Paths are strings here: a million `Path` objects take seconds to create and a GiB of memory.
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".heic", ".heif", ".hif"),
}
# Files with these suffixes are not images. A file with any other suffix is an image if it starts like one.
OTHER_SUFFIXES = {
    *(".txt", ".md", ".rst", ".pdf", ".html", ".xml", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".ini", ".cfg"),
    *(".csv", ".tsv", ".xls", ".xlsx", ".parquet", ".npy", ".npz", ".mat", ".pkl", ".pt", ".pth", ".h5", ".hdf5"),
    *(".safetensors", ".zip", ".gz", ".tar", ".tgz", ".rar", ".7z", ".db", ".log", ".py", ".ipynb", ".sh"),
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".mp3", ".wav"),
}
SIGNATURE_BYTES = 12
SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    *(b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n", b"P4 ", b"P5 ", b"P6 "),
)
BRANDS = (b"avif", b"heic", b"heix", b"mif1", b"msf1")  # in bytes 8 to 11, after "ftyp"
# Folders that network storage and operating systems put beside images, with thumbnails and deleted files.
SYSTEM_FOLDERS = {"@eadir", "#recycle", "$recycle.bin", "system volume information", "__macosx", "lost+found"}
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}


def is_hidden(name: str) -> bool:
    """Returns whether a name starts with a dot or is in `SYSTEM_FOLDERS` or `SYSTEM_FILES`."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS or name.lower() in SYSTEM_FILES


def is_image_file(path: str) -> bool:
    """Returns whether a file is an image, by its suffix or, if that is unknown, by its first bytes."""
    suffix = file_suffix(path)
    if suffix in IMAGE_SUFFIXES:
        return True
    return suffix not in OTHER_SUFFIXES and os.path.isfile(path) and _has_image_signature(path)  # noqa: PTH113


def file_suffix(path: str) -> str:
    """Returns the suffix in lower case, such as ".jpg"; "" if there is none."""
    return os.path.splitext(path)[1].lower()  # noqa: PTH122


def _has_image_signature(path: str) -> bool:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            head = file.read(SIGNATURE_BYTES)
    except OSError:
        return False
    if head.startswith(SIGNATURES):
        return True
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return is_webp or (head[4:8] == b"ftyp" and head[8:12] in BRANDS)


def find_images(folder: str | Path, other_files: Counter[str] | None = None) -> Iterator[str]:
    """Yields the paths of the images in a folder, sorted by name, and then those in each of its subfolders.

    Skips run folders, because the figures of a report are not data. Follows links, except links to a folder's own
    parents, which would form a cycle or add the images of other classes.

    Args:
      folder: path of the folder.
      other_files: updated in place with the number of other files by suffix.
    """
    parents = frozenset(map(_inode, Path(folder).resolve().parents))
    yield from _walk(str(folder), parents, Counter() if other_files is None else other_files)


def _walk(folder: str, parents: frozenset[tuple[int, int]], other_files: Counter[str]) -> Iterator[str]:
    inode = _inode(folder)
    if inode in parents:
        return
    _, subfolders, files = next(os.walk(folder), ("", [], []))
    if _is_run(subfolders, files):
        return
    for name in sorted(files):
        path = os.path.join(folder, name)  # noqa: PTH118
        if is_hidden(name):
            continue
        if is_image_file(path):
            yield path
        else:
            other_files[file_suffix(name)] += 1
    for name in sorted(subfolders):
        if not is_hidden(name):
            yield from _walk(os.path.join(folder, name), parents | {inode}, other_files)  # noqa: PTH118


def is_run_folder(folder: str | Path) -> bool:
    """Returns whether a folder holds a training run."""
    _, subfolders, files = next(os.walk(folder), ("", [], []))
    return _is_run(subfolders, files)


def _is_run(subfolders: list[str], files: list[str]) -> bool:
    return "config.json" in files and ("metrics.jsonl" in files or "checkpoints" in subfolders)


def _inode(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino

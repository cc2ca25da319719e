"""Opens a dataset: finds the reader for a path."""

from dataclasses import replace
from pathlib import Path

from flaxresnet.data.dataset import Splits
from flaxresnet.data.read_options import DEFAULT_OPTIONS, ReadOptions
from flaxresnet.runtime.errors import UserError, oserror_as_user_error
from flaxresnet.runtime.local_path import require_local

DEFAULT_FOLDER = Path("datasets")
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
ARCHIVE = "an archive; unpack it, and give the folder"
LIST = "a list of files; sort the images into one folder for each class, and give that folder"
# Descriptions, with the remedy, of files that are not datasets, by suffix.
UNREADABLE_FORMATS = {
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".rar", ".7z", ".bz2", ".xz"), ARCHIVE),
    **dict.fromkeys((".csv", ".tsv", ".xlsx", ".xls", ".json", ".txt"), LIST),
    **dict.fromkeys((".npz", ".npy"), "a NumPy file; write its arrays to HDF5 (see the page on data formats)"),
    ".parquet": "a Parquet file; write its images to one folder for each class, and give that folder",
    **dict.fromkeys(
        (".jpg", ".jpeg", ".png", ".webp", ".bmp"), "an image; give a folder with one folder for each class"
    ),
}


def open_dataset(path: str | Path | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> Splits:
    """Opens labeled images. Never writes to the path.

    Args:
      path: one of
        - an HDF5 file with a training split, a test split, or both (see `data/hdf5.py`);
        - a folder with one such file for each split;
        - a folder of images with one subfolder for each class (see `data/image_folder.py`);
        - a folder of ArrayRecord files (see `data/array_record.py`).
        None opens the folder `datasets` if it is one of these, and draws hand signs otherwise.
      options: image size, streaming, and the handling of unreadable images.

    Returns:
      The training split and the test split. A split is None if the path does not hold it.

    Raises:
      UserError: if the path does not exist, holds no such dataset, or holds a damaged one.
    """
    # The readers are imported here because each one takes a while to import and only one is needed.
    from flaxresnet.data.array_record import is_array_record_dir, read_records
    from flaxresnet.data.image_files import is_image_file, is_run_folder
    from flaxresnet.data.image_folder import is_image_folder, read_folder

    use_default = path is None
    require_local(path or DEFAULT_FOLDER)
    path = Path(path or DEFAULT_FOLDER)
    with oserror_as_user_error(path, "read"):
        exists = path.exists()
        files = hdf5_files(path) if path.is_dir() else [path]
        has_records = is_array_record_dir(path)
        has_images = not has_records and is_image_folder(path) and not any(map(holds_examples, files))
    if use_default and not (exists and (files or has_records or has_images)):
        from flaxresnet.data.hand_signs.cache import load_default_signs

        return load_default_signs()
    if not exists:
        raise UserError(f"{path} does not exist; give an HDF5 file, or a folder with HDF5 files or with images")
    if path.is_dir() and is_run_folder(path):
        raise UserError(f"{path} is a run folder; give the folder of the images")
    if path.suffix.lower() in UNREADABLE_FORMATS and path.is_file():
        raise UserError(f"{path} is {UNREADABLE_FORMATS[path.suffix.lower()]}")
    if has_records:
        splits = read_records(path, options)
    elif has_images:
        splits = read_folder(path, options)
    elif files:
        from flaxresnet.data.hdf5 import read_hdf5

        splits = read_hdf5(files, str(path), options)
    else:
        images = [child for child in path.iterdir() if child.is_file() and is_image_file(str(child))]
        if images:
            raise UserError(
                f"{path} has {len(images):,} images outside of class folders; sort them into one folder for each class"
            )
        raise UserError(
            f"{path} holds neither an HDF5 file (*.h5) nor a folder of images for each class; give one that does"
        )
    return replace(splits, path=str(path.absolute()))


def holds_examples(path: Path) -> bool:
    """Returns whether an HDF5 file has a training or test split, or cannot be opened: reading it reports the error."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return any(key in file for key in ("train_set_x", "test_set_x"))
    except OSError:
        return True


def hdf5_files(folder: Path) -> list[Path]:
    """Returns the HDF5 files directly in a folder, sorted by name; none if the folder does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in HDF5_SUFFIXES and path.is_file())

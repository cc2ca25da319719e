"""Opens a dataset: finds the reader for a path."""

from dataclasses import replace
from pathlib import Path

from flaxresnet.data.dataset import USUAL_SIZE, Input, Splits
from flaxresnet.runtime.errors import UserError, oserror_as_user_error
from flaxresnet.runtime.process_group import SINGLE_PROCESS, ProcessGroup

DEFAULT_FOLDER = Path("datasets")
HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")


def open_dataset(
    path: str | Path | None = None,
    image_size: tuple[int, int] = USUAL_SIZE,
    max_corrupt_fraction: float = 0.0,
    input: Input = "auto",
    processes: ProcessGroup = SINGLE_PROCESS,
    crop_pct: float = 1.0,
    rescan: bool = False,
    eval_preprocessing: bool = False,
) -> Splits:
    """Opens labelled images, never writing to where they are.

    Args:
      path: an HDF5 file with a training split, a test split or both, or a folder with one HDF5 file for each, in the
        tutorials' layout (see `data/hdf5.py`); or a folder of pictures, one folder a class (see
        `data/image_folder.py`); or a folder of ArrayRecord files (see `data/array_record.py`). None: the
        folder `datasets` if it holds such, else drawn hand signs.
      image_size: height and width that pictures in folders are brought to; HDF5 files have their own.
      max_corrupt_fraction: the largest share of images that may be unreadable and are then left out, in [0, 1).
      input: "memory" reads all images now, "stream" when they are asked for, "auto" the first where they take no more
        than a quarter of the machine's memory; of several machines', the one's that has least.
      processes: those that open the data together; each looks through a part of what is streamed.
      crop_pct: the share that is taken of test pictures, as `Preprocessing` has it; images that have a size of their
        own are taken as they are.
      rescan: look through all that is streamed for images that cannot be read, even where it was looked through before.
      eval_preprocessing: whether a run is judged by the images: training pictures are then taken as test pictures are.

    Returns:
      The splits found.

    Raises:
      UserError: the path or what it holds is not such a data set; the text says what is wrong with it.
    """
    from flaxresnet.data.array_record import is_array_record_dir, read_records
    from flaxresnet.data.image_folder import is_image_folder, read_folder

    if input not in ("auto", "memory", "stream"):
        raise UserError(f"--input is {input!r}; give 'auto', 'memory' or 'stream'")
    given, path = path, Path(path or DEFAULT_FOLDER)
    with oserror_as_user_error(path, "read"):
        files = hdf5_files(path) if path.is_dir() else [path]
        exists = path.exists()
        records = is_array_record_dir(path)
        pictures = not files and not records and is_image_folder(path)
    if given is None and not (exists and (files or pictures or records)):
        from flaxresnet.data.hand_signs.cache import load_default_signs

        return load_default_signs()
    if not exists:
        raise UserError(f"{path} does not exist; give an HDF5 file, or a folder with HDF5 files or with pictures")
    if pictures or records:
        read = read_folder if pictures else read_records
        splits = read(path, image_size, max_corrupt_fraction, input, processes, crop_pct, rescan, eval_preprocessing)
        return replace(splits, path=str(path.absolute()))
    if not files:
        raise UserError(
            f"{path} holds neither an HDF5 file (*.h5) nor a folder of pictures for each class; give one that does"
        )
    from flaxresnet.data.hdf5 import read_hdf5

    return replace(
        read_hdf5(files, str(path), max_corrupt_fraction, input, processes, rescan), path=str(path.absolute())
    )


def hdf5_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in HDF5_SUFFIXES and p.is_file())

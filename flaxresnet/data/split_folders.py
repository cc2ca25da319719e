"""Finds the folders of training and test images in a folder of images, and the class folders in them."""

from dataclasses import dataclass, field
from pathlib import Path

from flaxresnet.data.image_files import find_images, is_hidden, is_image_file, is_run_folder
from flaxresnet.runtime.errors import UserError, listed

# Lowercase names of split folders, without the parts in `AFFIXES`.
ROLES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout", "hold_out"),
}
AFFIXES = ("seg", "set", "data", "dataset", "images", "imgs", "split")  # as in seg_train, training_set, test-images


@dataclass
class FolderLayout:
    """The folders that hold the class folders.

    Attributes:
      train: folder of the training split; None if there are no split folders, or only one for test.
      test: folder of the test split, or None.
      notes: sentences about folders that are not used.
    """

    train: Path | None = None
    test: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def has_splits(self) -> bool:
        return self.train is not None or self.test is not None


def split_role(name: str) -> str | None:
    """Returns "train", "val" or "test" for the name of a split folder, such as "Training_set"; None for other names."""
    words = name.lower().replace("-", "_").replace(" ", "_").split("_")
    core = "_".join(word for word in words if word not in AFFIXES)
    for role, names in ROLES.items():
        if core in names or any(core == known + affix for known in names for affix in ("set", "data")):
            return role
    return None


def class_folders(folder: Path) -> list[Path]:
    """Returns the subfolders, sorted, that hold an image at any depth."""
    return [path for path in subfolders(folder) if next(find_images(path), None)]


def subfolders(folder: Path) -> list[Path]:
    """Returns the subfolders, sorted, without hidden ones, system folders and runs."""
    if not folder.is_dir():
        return []
    paths = [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_hidden(path.name)]
    return [path for path in paths if not is_run_folder(path)]


def has_direct_images(folder: Path) -> bool:
    """Returns whether a folder holds an image outside of subfolders."""
    return any(not is_hidden(path.name) and path.is_file() and is_image_file(str(path)) for path in folder.iterdir())


def find_layout(folder: Path) -> FolderLayout:
    """Finds the split folders. Without any, the class folders are directly in `folder`.

    A split folder has the name of a split and contains class folders. A folder that has the name of a split and holds
    images, but no class folders, is a class if there are no split folders, and is not used otherwise. If there are a
    test and a validation folder, the test folder is used if training has all of its classes, and the validation folder
    otherwise.

    Raises:
      UserError: if folders look like splits but have other names, two folders have names of the same split, or a
        single folder holds all class or split folders.
    """
    splits: dict[str, Path] = {}
    flat: list[Path] = []  # named like splits, with images outside of class folders
    others: list[Path] = []
    for path in class_folders(folder):
        role = split_role(path.name)
        if role is None:
            others.append(path)
            continue
        split = _step_through(path, role)
        if not class_folders(split):
            flat.append(path)
        elif role in splits:
            raise UserError(f"{folder} has two folders for one split, {splits[role].name} and {path.name}; keep one")
        else:
            splits[role] = split
    if not splits:
        _require_classes(folder, [*flat, *others])
        return FolderLayout()
    layout = FolderLayout(train=splits.pop("train", None))
    for path in flat:
        layout.notes.append(
            f"{path} has images outside of class folders and is not used; sort them into one folder for each class"
        )
    if others:
        names = listed([path.name for path in others])
        layout.notes.append(f"{folder} has split folders, so its other folders with images are not used: {names}")
    _choose_test(layout, splits)
    return layout


def _choose_test(layout: FolderLayout, splits: dict[str, Path]) -> None:
    """Takes the test folder, or the validation folder if there is no test folder that fits."""
    known = {path.name for path in class_folders(layout.train)} if layout.train else set()
    candidates = [splits[role] for role in ("test", "val") if role in splits]
    for path in candidates:
        unknown = sorted({folder.name for folder in class_folders(path)} - known)
        is_last = path is candidates[-1]
        if layout.test is not None:
            layout.notes.append(f"{path} is not used, because there is a test folder")
        elif known and unknown and not is_last:
            layout.notes.append(f"{path} is not used: training has no images of its classes {listed(unknown)}")
        else:
            layout.test = path


def _step_through(folder: Path, role: str) -> Path:
    """Returns the inner folder of a doubled one, such as `training_set/training_set`."""
    inner = class_folders(folder)
    if len(inner) == 1 and split_role(inner[0].name) == role and not has_direct_images(folder):
        return inner[0]
    return folder


def _require_classes(folder: Path, classes: list[Path]) -> None:
    """Raises UserError if the folders look like splits, or like one folder that holds the classes."""
    inner = [frozenset(path.name for path in class_folders(path)) for path in classes]
    if any(has_direct_images(path) for path in classes) or not classes:
        return
    if len(classes) == 1 and len(inner[0]) > 1:
        raise UserError(
            f"{folder} has one folder with images, {classes[0].name}, with the folders {listed(sorted(inner[0]))} in "
            f"it; give {classes[0]} if these are the classes or splits"
        )
    if len(classes) > 1 and len(inner[0]) > 1 and len(set(inner)) == 1:
        raise UserError(
            f"the folders {listed([path.name for path in classes])} in {folder} contain the same folders "
            f"{listed(sorted(inner[0]))}, so they look like splits; rename them to train and test, or move the images "
            "out of the inner folders if these are no classes"
        )

"""Options for reading a dataset."""

from dataclasses import dataclass
from typing import Literal, get_args

from flaxresnet.data.dataset import USUAL_SIZE
from flaxresnet.data.preprocess import ResizeMode
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.process_group import SINGLE_PROCESS, ProcessGroup

Input = Literal["auto", "memory", "stream"]


@dataclass(frozen=True)
class ReadOptions:
    """Options that control how `open_dataset` reads images.

    Attributes:
      image_size: height and width in pixels to which images in folders are resized. Images in HDF5 files, and in
        ArrayRecord files whose index gives an image size, keep their size.
      input: "memory" reads all images now; "stream" reads an image when it is needed; "auto" reads them into memory
        if they take at most a quarter of it. With several machines, the one with the least memory decides for all.
      max_corrupt_fraction: the largest fraction of unreadable images to skip, in [0, 1).
      crop_pct: fraction of a test image that the center crop covers, in (0, 1]; see `Preprocessing`.
      resize: handling of images with another aspect ratio than `image_size`: "stretch", "crop" or "pad"; see
        `Preprocessing.resize_mode`.
      eval_preprocessing: also center-crop the training images, to evaluate a run on them.
      rescan: check all streamed images again, even if an earlier scan of unchanged files is cached.
      processes: the processes that open the dataset together. Each checks its part of the streamed images.

    Raises:
      UserError: if `input`, `max_corrupt_fraction`, `crop_pct` or `resize` is out of range.
    """

    image_size: tuple[int, int] = USUAL_SIZE
    input: Input = "auto"
    max_corrupt_fraction: float = 0.0
    crop_pct: float = 1.0
    resize: ResizeMode = "stretch"
    eval_preprocessing: bool = False
    rescan: bool = False
    processes: ProcessGroup = SINGLE_PROCESS

    def __post_init__(self) -> None:
        if self.input not in get_args(Input):
            raise UserError(f"--input is {self.input!r}; give 'auto', 'memory' or 'stream'")
        if not 0 <= self.max_corrupt_fraction < 1:
            raise UserError(f"--max-corrupt-fraction must be at least 0 and below 1, not {self.max_corrupt_fraction}")
        if self.resize not in get_args(ResizeMode):
            raise UserError(f"--resize is {self.resize!r}; give 'stretch', 'crop' or 'pad'")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"--crop-pct must be above 0 and at most 1, not {self.crop_pct}")

    @property
    def train_crop_pct(self) -> float:
        """Fraction of a training image that the center crop covers; the loader takes random crops of the rest."""
        return self.crop_pct if self.eval_preprocessing else 1.0


DEFAULT_OPTIONS = ReadOptions()

"""A run's folder on disk: `config.json`, which makes it describe itself, and `metrics.jsonl`, one row an epoch."""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any, Self

import jax.numpy as jnp

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.config.validation import flag
from flaxresnet.data.dataset import is_same_data
from flaxresnet.data.preprocess import Preprocessing
from flaxresnet.models.resnet import MIN_IMAGE_SIZE, SIZES, ResNet, resnet, width_step
from flaxresnet.runs.fields import DATA, RUN, is_row, require
from flaxresnet.runs.lock import WorkdirLock
from flaxresnet.runtime.atomic_io import replace_file
from flaxresnet.runtime.errors import UserError, listed

FORMAT = 2
PACKAGES = ("flaxresnet", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "h5py", "Pillow")

# Options that may differ between a run and its continuation: they do not change what a step computes.
# Data have fingerprints, which are compared instead.
MAY_CHANGE = {
    *(
        "data",
        "image_size",
        "max_corrupt_fraction",
        "workdir",
        "epochs",
        "precise_bn_images",
        "resume",
        "compilation_cache",
    ),
    *("report", "tensorboard", "profile", "checkpoint_steps", "input", "workers", "shard_optimizer"),
    *("distributed", "coordinator_address", "num_processes", "process_id", "allow_config_changes"),
}
# Those that may differ besides when the user says so: weights, the optimiser's state and the count of steps still fit.
RESUMABLE_WITH_FLAG = {
    *(
        "recipe",
        "seed",
        "learning_rate",
        "schedule",
        "warmup_epochs",
        "label_smoothing",
        "bn_momentum",
        "zero_init_residual",
    ),
    *(
        "aug_strength",
        "aug_warmup_epochs",
        "background_prob",
        "crop_min_area",
        "auto_augment",
        "random_erasing",
        "mixup",
        "cutmix",
        "hflip",
        "precision",
    ),
}


def package_versions() -> dict[str, str]:
    """Of Python and of the packages that decide what a run computes."""
    return {"python": sys.version.split()[0], **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that is not installed
        return "not installed"


class RunFormatError(UserError):
    """A run that another version wrote, in a format that this one does not read."""


@dataclass(frozen=True)
class RunMetadata:
    """What `config.json` holds: everything needed to rebuild the network and to feed it.

    Attributes:
      config: the resolved options.
      class_names: one a class, in the order of the logits.
      preprocessing: from a photo to the network's input.
      data: where the data came from (`path` is None for drawn hand signs), how many images, and fingerprints.
      versions: of the packages that the run was made with.
      device: what it was begun on, in words.
    """

    config: TrainConfig
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    data: dict[str, Any]
    versions: dict[str, str]
    device: str = ""

    @property
    def is_adapted(self) -> bool:
        """Whether batch norm's statistics are of photos that are neither of its splits; see `adabn.py`."""
        return "adapted" in self.data

    def model(self) -> ResNet:
        c, network = self.config, self.config.network
        return resnet(
            network.model,
            network.variant,
            num_classes=len(self.class_names),
            width=network.width,
            stem_relu=network.stem_relu,
            momentum=c.resolved_recipe.bn_momentum,
            zero_init_residual=c.resolved_recipe.zero_init_residual,
            dtype=jnp.dtype(c.precision),
            frozen=c.frozen,
            freeze_bn_stats=c.resolved_recipe.freeze_bn_stats,
            ghost_batch_size=c.ghost_batch_size,
        )

    def config_diff(self, other: Self) -> Iterator[tuple[str, bool]]:
        """How `other`, a stored run, differs in what training computes: in words, and whether one could go on so."""
        mine, theirs = self.config.resolve().to_json(), other.config.resolve().to_json()
        for name, value in mine.items():
            if name not in MAY_CHANGE and value != theirs[name]:
                yield f"{flag(name)} {theirs[name]}, not {value}", name in RESUMABLE_WITH_FLAG
        streamed = [bool(run.data.get("streamed")) for run in (self, other)]
        if self.config.resolved_recipe.crop_min_area < 1 and streamed[0] != streamed[1]:
            where = {True: "decoded, from whole pictures (--input stream)", False: "trained on (--input memory)"}
            yield f"random crops taken where images are {where[streamed[1]]}", True
        if self.preprocessing != other.preprocessing:
            yield "images of another size or scaling", False
        if self.class_names != other.class_names:
            yield f"classes {listed(other.class_names)}, not {listed(self.class_names)}", False
        steps = [run.data.get("train_images", 0) // run.config.batch_size for run in (self, other)]
        for split, word, fits in (("train", "training", steps[0] == steps[1]), ("test", "test", True)):
            if not is_same_data(*(run.data[f"{split}_fingerprint"] for run in (self, other))):
                yield f"other {word} data ({other.data['source']})", fits

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "config": self.config.to_json(),
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing.to_json(),
            "data": self.data,
            "versions": self.versions,
            "device": self.device,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
          KeyError, TypeError: a field is missing or is not what `fields.py` says.
          UserError: an option or the preprocessing cannot be, or there is no such network.
        """
        require(values, RUN)
        require(values["data"], DATA, "data")
        config = TrainConfig.from_json(values["config"])
        preprocessing = Preprocessing.from_json(values["preprocessing"])
        check_network(config)
        if min(preprocessing.height, preprocessing.width) < MIN_IMAGE_SIZE:
            size = f"{preprocessing.height}×{preprocessing.width}"
            raise UserError(f"images of {size} pixels; the network needs {MIN_IMAGE_SIZE}×{MIN_IMAGE_SIZE} or more")
        return cls(
            config=config,
            class_names=tuple(values["class_names"]),
            preprocessing=preprocessing,
            data=dict(values["data"]),
            versions=dict(values["versions"]),
            device=values.get("device", ""),
        )


def check_network(config: TrainConfig) -> None:
    """Raises UserError where there is no network of this width."""
    network = config.network
    step = width_step(network.model)
    if network.width % step:
        raise UserError(
            f"--width {network.width} cannot be divided into the {SIZES[network.model]['groups']} groups of "
            f"{network.model}; give a multiple of {step}"
        )


class RunFolder:
    """Reads and writes the files of a run, other than its checkpoints."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.mid_epoch = self.path / "mid_epoch"
        self._config = self.path / "config.json"
        self._metrics = self.path / "metrics.jsonl"

    def exists(self) -> bool:
        """Whether a run is described here; raises UserError where the folder may not be looked into."""
        try:
            return self._config.exists()
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}") from error

    def has_checkpoints(self) -> bool:
        """Whether there are any, whole or not."""
        return any(folder.is_dir() and any(folder.iterdir()) for folder in (self.checkpoints, self.mid_epoch))

    def has_begun(self) -> bool:
        """Whether a run left more here than its description, which is written before all is known to be well."""
        return self.has_checkpoints() or any(line.strip() for line in self._lines())

    def read_info(self) -> RunMetadata:
        """Reads `config.json`.

        Raises:
          RunFormatError: another version wrote it.
          UserError: there is no run, or the file is damaged.
        """
        if not self.exists():
            raise UserError(f"{self.path} holds no run (no config.json); give the --workdir of a finished training")
        try:
            values = json.loads(self._config.read_text())
            require(values, {"format": RUN["format"]})  # first, for a newer one may have other fields
            if values["format"] != FORMAT:
                raise RunFormatError(
                    f"{self._config} has format {values['format']}, and this version reads format {FORMAT}; train "
                    "again with another --workdir, or use the version that wrote it"
                )
            return RunMetadata.from_json(values)
        except RunFormatError:
            raise
        except UserError as error:
            raise UserError(f"{self._config}: {error}") from error
        # A RecursionError is of brackets in brackets in brackets.
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{self._config} is damaged ({type(error).__name__}: {error}); restore it") from error

    def has_other_format(self) -> bool:
        """Whether another version wrote the run that is here, in a format that this one does not read."""
        try:
            self.read_info()
        except RunFormatError:
            return True
        except UserError:  # reported where the run is read
            pass
        return False

    def create(self, info: RunMetadata) -> None:
        """Makes the folder and all that training will write to; raises UserError where that cannot be done."""
        with self._writing():
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            probe = self.checkpoints / ".writable"
            probe.touch()
            probe.unlink()
            self._metrics.touch()
            with replace_file(self._config) as temporary:
                temporary.write_text(json.dumps(info.to_json(), indent=2) + "\n")

    def lock(self, lock: WorkdirLock) -> None:
        """Makes the folder, if need be, and locks it; raises UserError where it is in use or cannot be written."""
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(self.path)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of finished epochs, without lines that are none, such as one that was cut off."""
        return [row for line in self._lines() if (row := _row(line)) is not None]

    def _lines(self) -> list[str]:
        try:
            if not self._metrics.exists():
                return []
            with self._metrics.open(errors="replace") as file:
                return file.readlines()
        except OSError as error:
            reason = f"{self._metrics} cannot be read: {error.strerror}"
            raise UserError(f"{reason}; move it away or make it readable") from error

    def write_metrics(self, rows: list[dict[str, Any]]) -> Path | None:
        """Replaces all rows; a file with damaged lines is kept in `corrupt/`, for what can be told from them: where."""
        kept = None
        # A last line without its end was being written when the machine stopped: its epoch is trained again.
        if any(_row(line) is None and line.endswith("\n") for line in self._lines()):
            kept = self.keep_metrics()
        with self._writing(), replace_file(self._metrics) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return kept

    def keep_metrics(self) -> Path:
        """Copies the rows as they are to `corrupt/`, and says where they are now."""
        with self._writing():
            return Path(shutil.copy2(self._metrics, _numbered(self._damaged() / self._metrics.name)))

    def keep_description(self) -> Path:
        """Copies `config.json` as it is to `corrupt/`, and says where it is now."""
        with self._writing():
            return Path(shutil.copy2(self._config, _numbered(self._damaged() / self._config.name)))

    def append_metrics(self, row: dict[str, Any]) -> None:
        with self._writing(), self._metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns a full disk or a missing permission into a sentence."""
        try:
            yield
        except OSError as error:
            raise UserError(f"--workdir {self.path} cannot be written: {error.strerror}") from error

    def quarantine(self, checkpoint: Path) -> None:
        """Moves a damaged checkpoint to `corrupt/`, out of the way of the ones to come."""
        with self._writing():
            checkpoint.rename(_numbered(self._damaged() / f"{checkpoint.parent.name}-{checkpoint.name}"))

    def _damaged(self) -> Path:
        folder = self.path / "corrupt"
        folder.mkdir(exist_ok=True)
        return folder

    def rename_old_run(self) -> Path:
        """Renames the folder to the first free `NAME.1`, `NAME.2`, … and says which."""
        path = self.path.absolute().resolve()  # "." has no name of its own
        aside = _numbered(path)
        try:
            path.rename(aside)
        except OSError as error:
            raise UserError(f"--workdir {self.path} cannot be renamed: {error.strerror}") from error
        return aside


def _row(line: str) -> dict[str, Any] | None:
    """The figures of an epoch; None for a line that is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # the second of brackets in brackets in brackets
        return None
    return row if is_row(row) else None


def _numbered(path: Path) -> Path:
    """The first of `NAME.1`, `NAME.2`, … that is not there."""
    return next(free for number in count(1) if not (free := path.with_name(f"{path.name}.{number}")).exists())

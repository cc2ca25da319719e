"""Where weights come from: a run's folder, a file, or the Hugging Face hub."""

import logging
import re
from pathlib import Path

from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.runtime.errors import UserError, oserror_as_user_error
from flaxresnet.weights.pretrained_weights import PretrainedWeights
from flaxresnet.weights.run_weights import read_run
from flaxresnet.weights.weight_files import SUFFIXES, read_weights

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def open_weights(source: str, checkpoint: CheckpointChoice = "latest") -> PretrainedWeights:
    """The weights of a run's folder, a file, or a model on the hub, such as `"microsoft/resnet-50"`.

    Args:
      source: which.
      checkpoint: of a run, the latest or the best on the test images.

    Raises:
      UserError: there is nothing of that name, it cannot be fetched, or it holds no ResNet that fits.
    """
    path = Path(source)
    with oserror_as_user_error(path, "read"):
        is_folder = path.is_dir()
        exists = path.exists()
    if is_folder:
        # A folder as Hugging Face's `save_pretrained` makes it holds a file of weights.
        saved = [path / name for name in HUB_FILES if (path / name).exists()]
        return read_weights(saved[0]) if saved else read_run(path, checkpoint)
    if not exists and HUB_ID.fullmatch(source) and path.suffix not in SUFFIXES:
        return read_weights(_from_hub(source))
    return read_weights(path)


def _from_hub(model: str) -> Path:
    """The path of a model's weights in the hub's cache, fetched where they are not there yet."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise UserError(
            f"{model} is no file or folder here; to fetch it from the Hugging Face hub: pip install 'flaxresnet[hub]'"
        ) from None
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # what goes wrong is said below, once
    for name in HUB_FILES:
        try:
            return Path(hf_hub_download(model, name))
        except RepositoryNotFoundError:
            raise UserError(f"{model} is neither a file or folder here nor a public model on the hub") from None
        except EntryNotFoundError as error:
            if getattr(error, "response", None) is None:  # not in the cache, and the hub is out of reach
                raise _unreachable(model) from error
        except Exception as error:  # whatever the network brings
            raise _unreachable(model) from error
    raise UserError(f"{model} on the hub holds none of {', '.join(HUB_FILES)}")


def _unreachable(model: str) -> UserError:
    return UserError(
        f"{model} is no file or folder here, and the Hugging Face hub cannot be reached; go online once, "
        f"or download {HUB_FILES[0]} elsewhere and give its path"
    )

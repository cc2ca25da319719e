"""Sources of weights: a run folder, a file, or a model on the Hugging Face hub."""

import logging
import re
from pathlib import Path

from flaxresnet.config.train_config import CheckpointChoice
from flaxresnet.runtime.errors import UserError, oserror_as_user_error
from flaxresnet.runtime.local_path import require_local
from flaxresnet.weights.pretrained_weights import PretrainedWeights
from flaxresnet.weights.run_weights import read_run
from flaxresnet.weights.weight_files import SUFFIXES, read_weights

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def open_weights(source: str, checkpoint: CheckpointChoice = "latest") -> PretrainedWeights:
    """Reads the weights of a run, a file, or a model on the hub.

    Args:
      source: a run folder, a folder that Hugging Face's `save_pretrained` wrote, a weight file, or a hub id such as
        `"microsoft/resnet-50"`. An existing path takes precedence over a hub id.
      checkpoint: "latest" or "best", for a run folder.

    Raises:
      UserError: the source does not exist, cannot be read or downloaded, or contains no known ResNet.
    """
    require_local(source)
    path = Path(source)
    with oserror_as_user_error(path, "read"):
        is_folder = path.is_dir()
        exists = path.exists()
    if is_folder:
        saved = [path / name for name in HUB_FILES if (path / name).exists()]
        return read_weights(saved[0]) if saved else read_run(path, checkpoint)
    if not exists and HUB_ID.fullmatch(source) and path.suffix not in SUFFIXES:
        return read_weights(_download(source))
    return read_weights(path)


def _download(model: str) -> Path:
    """Returns the path of a model's weights in the hub's cache, after downloading them if necessary."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise UserError(
            f"{model} is not a local path; to download it from the Hugging Face hub: pip install 'flaxresnet[hub]'"
        ) from None
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # the UserErrors below already report the failure
    for name in HUB_FILES:
        try:
            return Path(hf_hub_download(model, name))
        except RepositoryNotFoundError:
            raise UserError(
                f"{model} is neither a local path nor a public model on the Hugging Face hub; check the spelling"
            ) from None
        except EntryNotFoundError as error:
            if getattr(error, "response", None) is None:  # not in the cache, and the hub is out of reach
                raise _unreachable(model) from error
        except Exception as error:  # the exceptions of the network stack are not documented
            raise _unreachable(model) from error
    raise UserError(f"{model} on the Hugging Face hub has none of the files {', '.join(HUB_FILES)}; use another model")


def _unreachable(model: str) -> UserError:
    return UserError(
        f"{model} is not a local path, and the Hugging Face hub cannot be reached; go online once, or download "
        f"{HUB_FILES[0]} elsewhere and give its path"
    )

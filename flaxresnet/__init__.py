"""flaxresnet: residual networks for image classification in JAX and Flax."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flaxresnet.adabn import adapt
    from flaxresnet.classifier import Classifier, Prediction
    from flaxresnet.config.train_config import TrainConfig
    from flaxresnet.data.dataset import Dataset, Splits
    from flaxresnet.data.open import open_dataset
    from flaxresnet.data.read_options import ReadOptions
    from flaxresnet.evaluation import Evaluation, evaluate
    from flaxresnet.fitting import fit
    from flaxresnet.models.blocks import ConvolutionalBlock, IdentityBlock, PaddedBlock
    from flaxresnet.models.conv import Conv
    from flaxresnet.models.precise_bn import measure_batch_stats
    from flaxresnet.models.resnet import (
        ResNet,
        ResNet18,
        ResNet20,
        ResNet32,
        ResNet34,
        ResNet44,
        ResNet50,
        ResNet56,
        ResNet101,
        ResNet110,
        ResNet152,
        resnet,
    )
    from flaxresnet.runtime.errors import UserError
    from flaxresnet.training.trainer import TrainResult

# Attributes are imported on first use, so that `import flaxresnet` is fast.
_MODULES = {
    "Classifier": "flaxresnet.classifier",
    "Conv": "flaxresnet.models.conv",
    "ConvolutionalBlock": "flaxresnet.models.blocks",
    "Dataset": "flaxresnet.data.dataset",
    "Evaluation": "flaxresnet.evaluation",
    "IdentityBlock": "flaxresnet.models.blocks",
    "PaddedBlock": "flaxresnet.models.blocks",
    "Prediction": "flaxresnet.classifier",
    "ReadOptions": "flaxresnet.data.read_options",
    "ResNet": "flaxresnet.models.resnet",
    "ResNet18": "flaxresnet.models.resnet",
    "ResNet20": "flaxresnet.models.resnet",
    "ResNet32": "flaxresnet.models.resnet",
    "ResNet34": "flaxresnet.models.resnet",
    "ResNet44": "flaxresnet.models.resnet",
    "ResNet50": "flaxresnet.models.resnet",
    "ResNet56": "flaxresnet.models.resnet",
    "ResNet101": "flaxresnet.models.resnet",
    "ResNet110": "flaxresnet.models.resnet",
    "ResNet152": "flaxresnet.models.resnet",
    "Splits": "flaxresnet.data.dataset",
    "TrainConfig": "flaxresnet.config.train_config",
    "TrainResult": "flaxresnet.training.trainer",
    "UserError": "flaxresnet.runtime.errors",
    "adapt": "flaxresnet.adabn",
    "evaluate": "flaxresnet.evaluation",
    "fit": "flaxresnet.fitting",
    "measure_batch_stats": "flaxresnet.models.precise_bn",
    "open_dataset": "flaxresnet.data.open",
    "resnet": "flaxresnet.models.resnet",
}

__all__ = list(_MODULES)
__version__ = "0.2.0.dev0"


def __getattr__(name: str) -> Any:
    """Imports a public attribute from its module. Raises AttributeError if no public attribute has this name."""
    if name not in _MODULES:
        raise AttributeError(f"module 'flaxresnet' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Returns the names of the module's attributes, including public ones that are not imported yet."""
    return sorted({*globals(), *_MODULES})

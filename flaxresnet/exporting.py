"""A trained network as one file that other programs run: StableHLO for anything with JAX, ONNX for anything else."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxresnet.classifier import Classifier
from flaxresnet.models.bn_folding import fold_batch_norm
from flaxresnet.models.conv import FoldedConv
from flaxresnet.runtime.atomic_io import atomic_write
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.logging import log_errors_only

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, METADATA = "program.stablehlo", "metadata.json"  # what is in the StableHLO archive


def metadata(classifier: Classifier, preprocessing: bool) -> dict[str, Any]:
    """What a caller has to know; values are JSON's.

    `input` says whether images are uint8 RGB, which the program scales, or floats scaled as `preprocessing` says;
    `temperature` is what the program divides logits by before the softmax.
    """
    p = classifier.preprocessing
    return {
        "class_names": list(classifier.class_names),
        "height": p.height,
        "width": p.width,
        "input": "uint8 RGB" if preprocessing else "float32, scaled by the caller",
        "output": "probabilities",
        "temperature": classifier.temperature,
        "preprocessing": p.to_json(),
    }


def export_stablehlo(classifier: Classifier, path: str | Path, preprocessing: bool = True) -> None:
    """Writes a zip archive with a program for CPUs, CUDA GPUs and TPUs, any number of images, and its metadata.

    `jax.export.deserialize` reads the program, which needs jax and flatbuffers and nothing of this project.

    Args:
      classifier: what to write.
      path: the archive; what is there is replaced.
      preprocessing: whether the program takes (n, height, width, 3) uint8 RGB images and scales them, or float32 ones
        that the caller has scaled. Either way they have the network's size.

    Raises:
      UserError: the file cannot be written.
    """
    (count,) = jax.export.symbolic_shape("n")
    images = _images(classifier, preprocessing, count)
    exported = jax.export.export(jax.jit(_program(classifier, preprocessing, FoldedConv)), platforms=PLATFORMS)(images)
    about = json.dumps(metadata(classifier, preprocessing), indent=2)
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(PROGRAM, exported.serialize())
        archive.writestr(METADATA, about)


def export_onnx(classifier: Classifier, path: str | Path, preprocessing: bool = True) -> None:
    """Writes an ONNX model for any number of images, with `metadata` in its metadata_props, values as JSON.

    Arguments and errors are those of `export_stablehlo`; UserError also where jax2onnx is not installed.
    """
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise UserError(f"writing ONNX needs {error.name}; install it with: pip install 'flaxresnet[onnx]'") from None
    with log_errors_only("onnx_ir"):  # shapes that it leaves out are those of any number of images
        model = to_onnx(
            _program(classifier, preprocessing, nn.Conv),
            [_images(classifier, preprocessing, "n")],
            model_name="flaxresnet",
            input_names=["images"],
            output_names=["probabilities"],
        )
    for key, value in metadata(classifier, preprocessing).items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _program(classifier: Classifier, preprocessing: bool, conv: Callable[..., Any]) -> Callable[[Any], Any]:
    """From images to probabilities, with the weights inside and batch norm folded."""
    model = classifier.model
    if model.act is nn.relu:
        # jax2onnx replaces `jax.nn.relu` while it traces. A reference from before would be written as `Max`.
        model = model.clone(act=lambda x: jax.nn.relu(x))
    model, variables = fold_batch_norm(model, classifier.variables, conv)
    scaled = classifier.preprocessing.preprocess_uint8 if preprocessing else lambda images: images
    return lambda images: jax.nn.softmax(model.apply(variables, scaled(images)) / classifier.temperature)


def _images(classifier: Classifier, preprocessing: bool, count: Any) -> Any:
    shape = (count, classifier.preprocessing.height, classifier.preprocessing.width, 3)
    return jax.ShapeDtypeStruct(shape, jnp.uint8 if preprocessing else jnp.float32)

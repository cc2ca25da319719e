"""Export of a classifier to one file that runs without flaxresnet: StableHLO for JAX, ONNX for other runtimes."""

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
from flaxresnet.runtime.x64 import x64_disabled

PLATFORMS = ("cpu", "cuda", "tpu")
# Members of the StableHLO archive.
PROGRAM_FILE = "program.stablehlo"
METADATA_FILE = "metadata.json"


def metadata(classifier: Classifier, preprocessing: bool) -> dict[str, Any]:
    """Returns JSON values that a caller of the exported program needs.

    `input` is the dtype and scaling of the images, `preprocessing` describes the scaling, and `temperature` is the
    number by which the program divides logits before the softmax.

    Args:
      classifier: the exported classifier.
      preprocessing: whether the program scales images.
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


@x64_disabled()
def export_stablehlo(classifier: Classifier, path: str | Path, preprocessing: bool = True) -> None:
    """Writes a zip archive of a program for CPUs, CUDA GPUs and TPUs, and its metadata.

    The program takes any number of images. `jax.export.deserialize` reads it from the archive's program.stablehlo; it
    needs only jax and flatbuffers.

    Args:
      classifier: the classifier to export.
      path: the archive. An existing file is replaced.
      preprocessing: True if the program takes (n, height, width, 3) uint8 RGB images and scales them; False if it
        takes float32 images that the caller has scaled. The images must have the network's size.

    Raises:
      UserError: the file cannot be written.
    """
    (count,) = jax.export.symbolic_shape("n")
    program = jax.jit(_program(classifier, preprocessing, FoldedConv))
    exported = jax.export.export(program, platforms=PLATFORMS)(_input_spec(classifier, preprocessing, count))
    metadata_text = json.dumps(metadata(classifier, preprocessing), indent=2)
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(PROGRAM_FILE, exported.serialize())
        archive.writestr(METADATA_FILE, metadata_text)


@x64_disabled()
def export_onnx(classifier: Classifier, path: str | Path, preprocessing: bool = True) -> None:
    """Writes an ONNX model for any number of images, with `metadata` as JSON in its metadata_props.

    Takes the arguments of `export_stablehlo`. Raises UserError if the file cannot be written or jax2onnx is missing.
    """
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise UserError(f"writing ONNX needs {error.name}; install it with: pip install 'flaxresnet[onnx]'") from None
    with log_errors_only("onnx_ir"):  # it warns about shapes that depend on the number of images
        model = to_onnx(
            _program(classifier, preprocessing, nn.Conv),
            [_input_spec(classifier, preprocessing, "n")],
            model_name="flaxresnet",
            input_names=["images"],
            output_names=["probabilities"],
        )
    for key, value in metadata(classifier, preprocessing).items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _program(classifier: Classifier, preprocessing: bool, conv: Callable[..., Any]) -> Callable[[Any], Any]:
    """Returns a function from images to probabilities that holds the weights, with batch norm folded.

    Args:
      classifier: the classifier to export.
      preprocessing: whether the function scales images.
      conv: the class of the folded convolutions.
    """
    model = classifier.model
    if model.act is nn.relu:
        # jax2onnx replaces `jax.nn.relu` during tracing. It would trace an earlier reference as `Max`.
        model = model.clone(act=lambda x: jax.nn.relu(x))
    model, variables = fold_batch_norm(model, classifier.variables, conv)

    def program(images: Any) -> Any:
        inputs = classifier.preprocessing.preprocess_uint8(images) if preprocessing else images
        return jax.nn.softmax(model.apply(variables, inputs) / classifier.temperature)

    return program


def _input_spec(classifier: Classifier, preprocessing: bool, count: Any) -> jax.ShapeDtypeStruct:
    shape = (count, classifier.preprocessing.height, classifier.preprocessing.width, 3)
    return jax.ShapeDtypeStruct(shape, jnp.uint8 if preprocessing else jnp.float32)

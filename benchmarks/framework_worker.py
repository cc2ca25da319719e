"""How long do the training and inference steps of one framework take? `compare_frameworks.py` starts these workers.

    echo "train 32 5" | python benchmarks/framework_worker.py FRAMEWORK IMAGE_SIZE

A line "KIND BATCH_SIZE STEPS" on standard input runs so many steps of the program "train" or "infer". The worker prints
one JSON object for each line: the seconds of the steps, and the peak memory in MiB with the part of it that maps files.
The first line for a program also builds and compiles it, which is reported apart as "first".
"""

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

PARAMETERS = 23_546_886  # of the tutorials' network at 64×64 pixels and six classes
CLEAR_PEAK = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")

Step = Callable[[], object]  # returns when the step is done


def batch_of(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images, (count, size, size, 3) uint8, and labels, (count,) int32."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    return images, (np.arange(count) % 6).astype(np.int32)


def check_size(parameters: int, size: int) -> None:
    """Raises ValueError if a network of the tutorials' image size does not have the tutorials' number of parameters."""
    if size == 64 and parameters != PARAMETERS:
        raise ValueError(f"the network has {parameters} trainable parameters instead of {PARAMETERS}")


def jax_step(kind: str, count: int, size: int, conv: str = "ours", precision: str = "float32") -> Step:
    from step_time import STEPS, disable_malloc_trim

    if conv == "ours":
        disable_malloc_trim()  # as training and the commands of flaxresnet do; plain Flax does not
    build, _ = STEPS[kind]
    return build(count, size, conv, precision).call


def torch_step(
    kind: str,
    count: int,
    size: int,
    channels_last: bool = False,
    bfloat16: bool = False,
    compiled: bool = False,
    fused: bool | None = None,
) -> Step:
    import torch
    from torch_network import torch_resnet50

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # products in TF32, as JAX takes them there
        torch.backends.cudnn.benchmark = True
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = torch_resnet50(size=size).to(device, memory_format=layout)
    check_size(sum(p.numel() for p in network.parameters()), size)
    images, labels = batch_of(count, size)
    x = torch.tensor(images).permute(0, 3, 1, 2).float().div(255).to(device).contiguous(memory_format=layout)
    y = torch.tensor(labels, dtype=torch.int64, device=device)
    network = torch.compile(network) if compiled else network
    cast = partial(torch.autocast, device, torch.bfloat16, enabled=bfloat16)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, eps=1e-7, fused=fused)

    def train() -> None:
        optimizer.zero_grad()
        with cast():
            loss = torch.nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()

    def infer() -> None:
        with torch.inference_mode(), cast():
            network(x)

    def step() -> None:
        run()
        if device == "cuda":
            torch.cuda.synchronize()

    network.train(kind == "train")
    run = {"train": train, "infer": infer}[kind]
    return step


def keras_step(kind: str, count: int, size: int, xla: bool) -> Step:
    import keras
    from keras_network import keras_resnet50

    model = keras_resnet50(size=size)
    check_size(sum(int(np.prod(v.shape)) for v in model.trainable_variables), size)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=xla)
    images, labels = batch_of(count, size)
    x = (images / 255).astype(np.float32)
    return {"train": lambda: model.train_on_batch(x, labels), "infer": lambda: model.predict_on_batch(x)}[kind]


@dataclass(frozen=True)
class Framework:
    """A framework to time.

    Attributes:
      make_step: takes "train" or "infer", the batch size, the image size, and `options`.
      options: keyword arguments of `make_step`.
      packages: that have to be installed.
      backend: of Keras.
    """

    make_step: Callable[..., Step]
    options: dict[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    backend: str = ""


OURS = "flaxresnet"
TORCH = ("torch",)
TENSORFLOW = ("keras", "tensorflow")
FRAMEWORKS = {
    OURS: Framework(jax_step),
    "flaxresnet, bfloat16": Framework(jax_step, {"precision": "bfloat16"}),
    "plain Flax": Framework(jax_step, {"conv": "nn.Conv"}),
    "PyTorch": Framework(torch_step, {}, TORCH),
    "PyTorch, channels last": Framework(torch_step, {"channels_last": True}, TORCH),
    "PyTorch, fused Adam": Framework(torch_step, {"channels_last": True, "fused": True}, TORCH),
    "PyTorch, compiled": Framework(torch_step, {"channels_last": True, "compiled": True}, TORCH),
    "PyTorch, bfloat16": Framework(torch_step, {"channels_last": True, "bfloat16": True}, TORCH),
    "PyTorch, compiled, bfloat16": Framework(
        torch_step, {"channels_last": True, "bfloat16": True, "compiled": True}, TORCH
    ),
    "Keras on TensorFlow": Framework(keras_step, {"xla": False}, TENSORFLOW, "tensorflow"),
    # Keras's default.
    "Keras on TensorFlow, XLA": Framework(keras_step, {"xla": True}, TENSORFLOW, "tensorflow"),
    "Keras on JAX": Framework(keras_step, {"xla": True}, ("keras",), "jax"),
}


def peak_memory() -> dict[str, float]:
    """Returns the peak memory in MiB: of the accelerator if the framework reports it, otherwise of this process.

    "files_mebibytes" is the part of a process's memory that maps files such as libraries; the system may drop it at any
    time.
    """
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return {"peak_mebibytes": torch.cuda.max_memory_allocated() / 2**20, "files_mebibytes": 0.0}
    if "jax" in sys.modules:
        stats = sys.modules["jax"].devices()[0].memory_stats()
        if stats:
            return {"peak_mebibytes": stats["peak_bytes_in_use"] / 2**20, "files_mebibytes": 0.0}
    files = re.search(r"^RssFile:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE) if STATUS.exists() else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_mebibytes": peak / 1024, "files_mebibytes": int(files[1]) / 1024 if files else 0.0}


def reset_peak_memory() -> None:
    """Sets the peak memory to the memory in use; only CUDA and Linux can do that."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5")  # proc(5): resets VmHWM


def main(name: str, size: int) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TensorFlow selects oneDNN's kernels by itself only on CPUs with instructions for neural networks. Without them its
    # step takes 2.6 times as long on other CPUs.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # All frameworks have processes on a GPU at once, so each has to take only the memory that it needs.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    framework = FRAMEWORKS[name]
    if framework.backend:
        os.environ["KERAS_BACKEND"] = framework.backend
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of the framework goes to standard error
    steps: dict[tuple[str, int], Step] = {}
    for line in sys.stdin:
        kind, count, times = line.split()
        key = kind, int(count)
        reply: dict[str, Any] = {}
        if key not in steps:
            start = time.perf_counter()
            steps[key] = framework.make_step(kind, int(count), size, **framework.options)
            steps[key]()
            reply["first"] = time.perf_counter() - start
            steps[key]()
            reset_peak_memory()
        reply["seconds"] = []
        for _ in range(int(times)):
            start = time.perf_counter()
            steps[key]()
            reply["seconds"].append(time.perf_counter() - start)
        print(json.dumps(reply | peak_memory()), file=replies, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

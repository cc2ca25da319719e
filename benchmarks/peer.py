"""One framework's training and inference step, in a process of its own; `peers.py` starts it and asks it for times.

A line "train 5" on standard input runs five training steps; the answer is a line of JSON with their seconds. The first
call of each program also builds and compiles it, and reports that time apart.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

PARAMETERS = 23_546_886  # of the tutorials' network at 64×64 pixels and six classes
CLEAR_PEAK = Path("/proc/self/clear_refs")

Step = Callable[[], object]  # returns when the step is done


def batch_of(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    return images, (np.arange(count) % 6).astype(np.int32)


def check_size(parameters: int, size: int) -> None:
    if size == 64 and parameters != PARAMETERS:
        raise ValueError(f"the network has {parameters} trainable parameters, not {PARAMETERS}; it is another one")


def jax_train(count: int, size: int, conv: str = "ours", precision: str = "float32") -> Step:
    from step_time import keep_freed_memory, training

    if conv == "ours":
        keep_freed_memory()  # as our training does; plain Flax has to do without
    return training(count, size, conv, precision).call


def jax_infer(count: int, size: int, conv: str = "ours", precision: str = "float32") -> Step:
    from step_time import inference, keep_freed_memory

    if conv == "ours":
        keep_freed_memory()
    return inference(count, size, conv, precision).call


def torch_parts(count: int, size: int, channels_last: bool, bfloat16: bool, compiled: bool):
    import torch
    from torch_network import torch_resnet50

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = torch_resnet50(size=size).to(device, memory_format=layout)
    check_size(sum(p.numel() for p in network.parameters()), size)
    images, labels = batch_of(count, size)
    x = torch.tensor(images).permute(0, 3, 1, 2).float().div(255).to(device).contiguous(memory_format=layout)
    cast = partial(torch.autocast, device, torch.bfloat16, enabled=bfloat16)
    network = torch.compile(network) if compiled else network
    return torch, network, x, torch.tensor(labels, dtype=torch.int64, device=device), cast


def wait_for(torch) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def torch_train(
    count: int, size: int, channels_last: bool = False, bfloat16: bool = False, compiled: bool = False
) -> Step:
    torch, network, x, y, cast = torch_parts(count, size, channels_last, bfloat16, compiled)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, eps=1e-7)

    def step() -> None:
        optimizer.zero_grad()
        with cast():
            loss = torch.nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        wait_for(torch)

    return step


def torch_infer(
    count: int, size: int, channels_last: bool = False, bfloat16: bool = False, compiled: bool = False
) -> Step:
    torch, network, x, _, cast = torch_parts(count, size, channels_last, bfloat16, compiled)
    network.eval()

    def step() -> None:
        with torch.inference_mode(), cast():
            network(x)
        wait_for(torch)

    return step


def keras_model(size: int, xla: bool):
    import keras
    from keras_network import keras_resnet50

    model = keras_resnet50(size=size)
    check_size(sum(int(np.prod(v.shape)) for v in model.trainable_variables), size)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=xla)
    return model


def keras_train(count: int, size: int, xla: bool) -> Step:
    images, labels = batch_of(count, size)
    model, x = keras_model(size, xla), (images / 255).astype(np.float32)
    return lambda: model.train_on_batch(x, labels)


def keras_infer(count: int, size: int, xla: bool) -> Step:
    model, x = keras_model(size, xla), (batch_of(count, size)[0] / 255).astype(np.float32)
    return lambda: model.predict_on_batch(x)


def both(train: Callable[..., Step], infer: Callable[..., Step], **options) -> dict[str, Callable[..., Step]]:
    return {"train": partial(train, **options), "infer": partial(infer, **options)}


PEERS = {
    "flaxresnet": both(jax_train, jax_infer),
    "flaxresnet, bfloat16": both(jax_train, jax_infer, precision="bfloat16"),
    "plain Flax": both(jax_train, jax_infer, conv="nn.Conv"),
    "PyTorch": both(torch_train, torch_infer),
    "PyTorch, channels last": both(torch_train, torch_infer, channels_last=True),
    "PyTorch, compiled": both(torch_train, torch_infer, channels_last=True, compiled=True),
    "PyTorch, bfloat16": both(torch_train, torch_infer, channels_last=True, bfloat16=True),
    "Keras on TensorFlow": both(keras_train, keras_infer, xla=False),
    "Keras on TensorFlow, XLA": both(keras_train, keras_infer, xla=True),  # what Keras takes where it is not told
    "Keras on JAX": both(keras_train, keras_infer, xla=True),
}
NEEDS = {"PyTorch": ["torch"], "Keras on TensorFlow": ["keras", "tensorflow"], "Keras on JAX": ["keras"]}
BACKENDS = {"Keras on TensorFlow": "tensorflow", "Keras on TensorFlow, XLA": "tensorflow", "Keras on JAX": "jax"}


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> None:
    if CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5")  # Linux: the peak starts again from what is in use now


def main(name: str, size: int) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if name in BACKENDS:
        os.environ["KERAS_BACKEND"] = BACKENDS[name]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a framework prints goes to standard error
    steps: dict[tuple[str, int], Step] = {}
    for line in sys.stdin:
        kind, count, times = line.split()
        key, answer = (kind, int(count)), {}
        if key not in steps:
            start = time.perf_counter()
            steps[key] = PEERS[name][kind](int(count), size)
            steps[key]()
            answer["first"] = time.perf_counter() - start
            steps[key]()
            forget_peak()
        answer["seconds"] = []
        for _ in range(int(times)):
            start = time.perf_counter()
            steps[key]()
            answer["seconds"].append(time.perf_counter() - start)
        answer["peak_mebibytes"] = peak_mebibytes()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""How long data-parallel training takes on 1 to 256 GPUs, by calculation: `python benchmarks/scaling.py`.

A model, not a measurement: `SCALING.md` has its formulas. What it takes of a machine are arguments; their defaults are
data-sheet figures and assumptions. What two cores and loopback can say about it is measured with `--input-workers` and
`--processes`.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from allreduce_model import BYTES, NORM_EXCHANGES, ring_bytes, small_exchange
from bench_cli import begin
from rich import box
from rich.console import Console
from rich.table import Table
from scaling_measure import measure_input, measure_processes

from flaxresnet.models.resnet import resnet
from flaxresnet.visualize.layer_table import inspect

WIDTH = 130  # columns of the table, wherever it is shown
PASSES = 3  # forward, and twice its work backward: gradients of a layer's input and of its kernel
BACKWARD = 2 / 3  # of a step's arithmetic
IMAGENET = 1_281_167  # training images
EPOCHS = 90


@dataclass(frozen=True)
class Arguments:
    """Predicts the time of data-parallel training from figures of the hardware, which are assumptions.

    Example: python benchmarks/scaling.py --gpus 1 8 64 --efficiency 0.15
    """

    gpus: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Numbers of GPUs to predict for."""

    model: str = "resnet50"
    """Network, as torchvision writes it, with 1000 classes."""

    image_size: int = 224
    """Height and width in pixels."""

    batch: int = 128
    """Images a step for each GPU."""

    tflops: float = 989.0
    """Data sheet: peak of a GPU, 10¹² operations a second (H100 SXM, dense bfloat16)."""

    efficiency: float = 0.10
    """Assumption: the share of that peak that a training step reaches."""

    node_gpus: int = 8
    """GPUs of a node, joined by --link."""

    link: float = 450.0
    """Data sheet: GB/s from a GPU to the next one of its node (NVLink of an H100: 900 both ways together)."""

    network: float = 50.0
    """Data sheet: GB/s from a node to the next (one adapter of 400 Gb/s)."""

    reached: float = 0.8
    """Assumption: the share of --link and --network that an all-reduce reaches."""

    hop: float = 5.0
    """Assumption: microseconds from one GPU to another for a small message."""

    overlap: float = 0.0
    """Assumption: the share of the backward pass behind which the all-reduce of gradients can hide."""

    core_rate: float = 150.0
    """Assumption: images that a core decodes and crops in a second; --input-workers measures yours."""

    cores: float = 14.0
    """Data sheet: cores for each GPU (DGX H100: 112 for 8)."""

    checkpoint_steps: int = 1000
    """Steps between checkpoints."""

    host_copy: float = 25.0
    """Assumption: GB/s from a GPU to its host, for which a checkpoint stops training."""

    disk: float = 1.0
    """Assumption: GB/s to the disk, while training goes on."""

    input_workers: tuple[int, ...] = ()
    """Measure instead how fast pictures are read here, by so many worker processes (0: threads)."""

    processes: tuple[int, ...] = ()
    """Measure instead runs of so many processes here, a core each while there are cores, beside the prediction."""

    rounds: int = 3
    """Epochs measured of a run, and times that reading is measured."""

    pictures: int = 320
    """Pictures drawn for the measurements."""

    width: int = 32
    """Features of the first convolution of the network that --processes trains (resnet14, 64×64)."""

    json: Path | None = None
    """Write the figures to this file."""


@dataclass(frozen=True)
class Network:
    """What the model has to know of a network."""

    parameters: int
    flops: int  # of one image, forward
    batch_norms: int

    @classmethod
    def of(cls, model: str, size: int, **fields: Any) -> "Network":
        layers = inspect(resnet(model, "torchvision", **({"num_classes": 1000} | fields)), (size, size))
        norms = sum(one.layer.kind == "BatchNormalization" for one in layers)
        return cls(sum(one.parameters for one in layers), sum(one.flops for one in layers), norms)


@dataclass(frozen=True)
class Prediction:
    """A step on so many GPUs, in milliseconds, and what follows from it."""

    gpus: int
    compute: float
    all_reduce: float  # of the gradients
    exposed: float  # what of that is not hidden behind the backward pass
    norm: float  # exchanges of batch norm, where it takes its statistics over all GPUs
    checkpoint: float  # the stop for a checkpoint, its share in a step
    images_per_second: float  # with enough input: so many have to be read
    efficiency: float  # of GPUs: images a second against those of one GPU, times their number
    efficiency_local: float  # the same with statistics of each GPU's own images (--ghost-batch-size)
    cores_per_gpu: float  # to read so many
    images_per_second_read: float  # with the cores that there are
    hours: float  # for 90 epochs of ImageNet, with those
    checkpoint_write: float  # seconds, in the background


def predict(network: Network, a: Arguments, gpus: int) -> Prediction:
    """A step on so many GPUs."""
    compute = PASSES * network.flops * a.batch / (a.tflops * 1e12 * a.efficiency)
    slowest = a.link if gpus <= a.node_gpus else min(a.link, a.network)
    gradients = BYTES * network.parameters
    hops = 2 * (gpus - 1) * a.hop * 1e-6
    all_reduce = ring_bytes(gradients, gpus) / (slowest * 1e9 * a.reached) + hops
    exposed = max(0.0, all_reduce - a.overlap * BACKWARD * compute)
    norm = NORM_EXCHANGES * network.batch_norms * small_exchange(gpus, a.hop * 1e-6)
    saved = 2 * gradients  # with the momentum
    checkpoint = saved / (a.host_copy * 1e9) / a.checkpoint_steps
    alone, local = compute + checkpoint, compute + exposed + checkpoint
    rate = gpus * a.batch / (local + norm)
    read = min(rate, gpus * a.cores * a.core_rate)
    return Prediction(
        gpus=gpus,
        compute=1e3 * compute,
        all_reduce=1e3 * all_reduce,
        exposed=1e3 * exposed,
        norm=1e3 * norm,
        checkpoint=1e3 * checkpoint,
        images_per_second=rate,
        efficiency=alone / (local + norm),
        efficiency_local=alone / local,
        cores_per_gpu=rate / gpus / a.core_rate,
        images_per_second_read=read,
        hours=EPOCHS * IMAGENET / read / 3600,
        checkpoint_write=saved / (a.disk * 1e9),
    )


def main(arguments: Arguments) -> None:
    console = Console(width=WIDTH)
    report: dict[str, Any] = {"arguments": asdict(arguments)}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.input_workers:
            report["input"] = measure_input(Path(folder), arguments)
            console.print(rows_as_table(report["input"]))
        if arguments.processes:
            small = Network.of("resnet14", 64, width=arguments.width, num_classes=2)
            report["processes"] = measure_processes(Path(folder), arguments, small)
            console.print(rows_as_table(report["processes"]))
    if not (arguments.input_workers or arguments.processes):
        network = Network.of(arguments.model, arguments.image_size)
        predictions = [predict(network, arguments, gpus) for gpus in arguments.gpus]
        report |= {"network": asdict(network), "predictions": [asdict(one) for one in predictions]}
        console.print(
            f"{arguments.model}: {network.parameters:,} parameters, {network.flops / 1e9:.2f} GFLOP an image forward, "
            f"{network.batch_norms} batch norms; {arguments.batch} images a GPU.\n"
            "Calculated, not measured; times in milliseconds, those of 90 epochs of ImageNet in hours."
        )
        console.print(as_table(predictions))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2, default=str) + "\n")


def as_table(predictions: list[Prediction]) -> Table:
    table = Table(box=box.SIMPLE)
    for name in ("GPUs", "compute", "all-reduce", "exposed", "batch norm", "images/s", "efficiency", "local norm"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("cores/GPU", "read/s", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in predictions:
        table.add_row(
            str(one.gpus),
            f"{one.compute:.1f}",
            f"{one.all_reduce:.2f}",
            f"{one.exposed:.2f}",
            f"{one.norm:.2f}",
            f"{one.images_per_second:,.0f}",
            f"{one.efficiency:.3f}",
            f"{one.efficiency_local:.3f}",
            f"{one.cores_per_gpu:.0f}",
            f"{one.images_per_second_read:,.0f}",
            f"{one.hours:.2f}",
        )
    return table


def rows_as_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    return table


if __name__ == "__main__":
    begin(main, Arguments)

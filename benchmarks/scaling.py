"""How long does data-parallel training take on 1 to 256 GPUs?

    python benchmarks/scaling.py

The script calculates and does not measure; `SCALING.md` has the formulas. The flags are figures of the hardware, whose
defaults come from data sheets or are assumptions. The table has one row for each number of GPUs:

    compute                   milliseconds of a step for arithmetic
    all-reduce, exposed       for the all-reduce of gradients, and for the part that the backward pass does not hide
    batch norm                for the exchanges of batch norm
    images/s                  rate with enough input
    efficiency, local norm    that rate relative to as many separate GPUs; the same with `--ghost-batch-size`
    cores/GPU                 cores that have to read images for each GPU
    read/s, hours             rate with the available cores, and the time of 90 epochs of ImageNet at that rate

`--input-workers` and `--processes` measure instead: how fast this machine reads images, and the steps of several
processes on it beside the prediction. Each prints one row for each number of workers or processes.
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

WIDTH = 130  # columns of the table
PASSES = 3  # forward, and twice as much backward: gradients of a layer's input and of its kernel
BACKWARD = 2 / 3  # fraction of a step's arithmetic
IMAGENET = 1_281_167  # training images
EPOCHS = 90


@dataclass(frozen=True)
class Arguments:
    """Predicts the time of data-parallel training from assumed figures of the hardware.

    Example: python benchmarks/scaling.py --gpus 1 8 64 --efficiency 0.15
    """

    gpus: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Numbers of GPUs to predict for."""

    model: str = "resnet50"
    """Network, in torchvision's variant, with 1000 classes."""

    image_size: int = 224
    """Height and width in pixels."""

    batch: int = 128
    """Images in a step for each GPU."""

    tflops: float = 989.0
    """Data sheet: peak of a GPU, 10¹² operations a second (H100 SXM, dense bfloat16)."""

    efficiency: float = 0.10
    """Assumption: fraction of that peak that a training step reaches."""

    node_gpus: int = 8
    """GPUs of a node, joined by --link."""

    link: float = 450.0
    """Data sheet: GB/s from a GPU to the next in its node (NVLink of an H100: 900 both ways together)."""

    network: float = 50.0
    """Data sheet: GB/s from a node to the next (one adapter of 400 Gb/s)."""

    reached: float = 0.8
    """Assumption: fraction of --link and --network that an all-reduce reaches."""

    hop: float = 5.0
    """Assumption: microseconds from one GPU to another for a small message."""

    overlap: float = 0.0
    """Assumption: fraction of the backward pass that can hide the all-reduce of gradients."""

    core_rate: float = 150.0
    """Assumption: images that a core decodes and crops in a second; --input-workers measures it."""

    cores: float = 14.0
    """Data sheet: cores for each GPU (DGX H100: 112 cores for 8 GPUs)."""

    checkpoint_steps: int = 1000
    """Steps between checkpoints."""

    host_copy: float = 25.0
    """Assumption: GB/s from a GPU to its host; a checkpoint stops training for this copy."""

    disk: float = 1.0
    """Assumption: GB/s to the disk, during training."""

    input_workers: tuple[int, ...] = ()
    """Measure how fast these numbers of worker processes read images on this machine (0: threads)."""

    processes: tuple[int, ...] = ()
    """Measure runs of these numbers of processes on this machine, one core each, beside the prediction."""

    rounds: int = 3
    """Measured epochs of a run, and measurements of reading."""

    pictures: int = 320
    """Images drawn for the measurements."""

    width: int = 32
    """Channels of the first convolution of the network that --processes trains (resnet14, 64×64)."""

    json: Path | None = None
    """Write the figures to this file."""


@dataclass(frozen=True)
class Network:
    """The size of a network.

    Attributes:
      parameters: number of parameters.
      flops: operations of a forward pass of one image.
      batch_norms: number of batch norms.
    """

    parameters: int
    flops: int
    batch_norms: int

    @classmethod
    def of(cls, model: str, size: int, **fields: Any) -> "Network":
        """Counts the layers of a network; `fields` are keyword arguments of `resnet`, with 1000 classes by default."""
        layers = inspect(resnet(model, "torchvision", **({"num_classes": 1000} | fields)), (size, size))
        return cls(
            parameters=sum(info.parameters for info in layers),
            flops=sum(info.flops for info in layers),
            batch_norms=sum(info.layer.kind == "BatchNormalization" for info in layers),
        )


@dataclass(frozen=True)
class Prediction:
    """A predicted step on several GPUs.

    Attributes:
      gpus: number of GPUs.
      compute: milliseconds of arithmetic.
      all_reduce: milliseconds of the all-reduce of gradients.
      exposed: the part of `all_reduce` that the backward pass does not hide.
      norm: milliseconds of batch norm's exchanges, with statistics over all GPUs.
      checkpoint: milliseconds that training waits for a checkpoint, averaged over the steps between two.
      images_per_second: rate with enough input.
      efficiency: `images_per_second` divided by the rate of one GPU times their number.
      efficiency_local: the same with statistics of each GPU's own images (--ghost-batch-size).
      cores_per_gpu: cores that have to read for each GPU.
      images_per_second_read: rate with the available cores.
      hours: time of 90 epochs of ImageNet at that rate.
      checkpoint_write: seconds of writing a checkpoint in the background.
    """

    gpus: int
    compute: float
    all_reduce: float
    exposed: float
    norm: float
    checkpoint: float
    images_per_second: float
    efficiency: float
    efficiency_local: float
    cores_per_gpu: float
    images_per_second_read: float
    hours: float
    checkpoint_write: float


def predict(network: Network, a: Arguments, gpus: int) -> Prediction:
    """Predicts a step on `gpus` GPUs by the formulas of SCALING.md; `a` holds the assumptions."""
    compute = PASSES * network.flops * a.batch / (a.tflops * 1e12 * a.efficiency)
    slowest = a.link if gpus <= a.node_gpus else min(a.link, a.network)
    gradients = BYTES * network.parameters
    hops = 2 * (gpus - 1) * a.hop * 1e-6
    all_reduce = ring_bytes(gradients, gpus) / (slowest * 1e9 * a.reached) + hops
    exposed = max(0.0, all_reduce - a.overlap * BACKWARD * compute)
    norm = NORM_EXCHANGES * network.batch_norms * small_exchange(gpus, a.hop * 1e-6)
    saved = 2 * gradients  # parameters and momentum
    checkpoint = saved / (a.host_copy * 1e9) / a.checkpoint_steps
    alone = compute + checkpoint
    local = alone + exposed
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
        report |= {"network": asdict(network), "predictions": [asdict(prediction) for prediction in predictions]}
        console.print(
            f"{arguments.model}: {network.parameters:,} parameters, {network.flops / 1e9:.2f} GFLOP an image forward, "
            f"{network.batch_norms} batch norms; {arguments.batch} images a GPU.\n"
            "Calculated, not measured. Times are in milliseconds, 90 epochs of ImageNet in hours."
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
    for row in predictions:
        table.add_row(
            str(row.gpus),
            f"{row.compute:.1f}",
            f"{row.all_reduce:.2f}",
            f"{row.exposed:.2f}",
            f"{row.norm:.2f}",
            f"{row.images_per_second:,.0f}",
            f"{row.efficiency:.3f}",
            f"{row.efficiency_local:.3f}",
            f"{row.cores_per_gpu:.0f}",
            f"{row.images_per_second_read:,.0f}",
            f"{row.hours:.2f}",
        )
    return table


def rows_as_table(rows: list[dict[str, Any]]) -> Table:
    """Returns a table with one column for each key of the rows."""
    table = Table(box=box.SIMPLE)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()]
        table.add_row(*cells)
    return table


if __name__ == "__main__":
    begin(main, Arguments)

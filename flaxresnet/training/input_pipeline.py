"""The data loaders of a run, and the shardings of its arrays over the devices."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.data.dataset import Dataset
from flaxresnet.data.loader import Batch, DeviceSource, Loader, fits_devices
from flaxresnet.data.streaming import StreamSource, default_num_workers


class InputPipeline:
    """The data loaders of a run. Each batch is divided over all devices of all processes.

    Attributes:
      replicated: the sharding of arrays that every device holds in full.
      split: the sharding that divides a batch's leading axis over the devices.
      train, test: data loaders.
      bn_batches: images for precise batch norm, (k, batch, height, width, 3) uint8; None if the run measures none.
      description: one line about the size and the location of the training images.
    """

    def __init__(self, config: TrainConfig, train: Dataset, test: Dataset) -> None:
        mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.split = NamedSharding(mesh, PartitionSpec("data"))
        self._config = config
        self._workers = default_num_workers() if config.workers is None else config.workers
        self.train = self._loader(train)
        self.test = self._loader(test)
        self.bn_batches: jax.Array | None = None
        if config.measures_statistics:
            self.bn_batches = self.train.bn_batches(config.precise_bn_images, config.seed)
        mebibytes = train.images.nbytes / 2**20
        self.description = f"input: {mebibytes:,.0f} MiB of training images, {self._location(train)}"

    @property
    def batch_shapes(self) -> Batch:
        """A batch of `jax.ShapeDtypeStruct`, with shardings."""
        return self.test.shapes()

    def _loader(self, dataset: Dataset) -> Loader:
        batch_size = self._config.batch_size
        source: DeviceSource | StreamSource
        if dataset.is_streamed:
            crop_min_area = self._config.resolved_recipe.crop_min_area
            source = StreamSource(dataset, batch_size, self.split, self._workers, crop_min_area)
        elif fits_devices(dataset):
            source = DeviceSource(dataset, batch_size, self.replicated, self.split)
        else:  # copied to the devices batch by batch
            source = StreamSource(dataset, batch_size, self.split, workers=0)
        return Loader(source, dataset, batch_size, self.split)

    def _location(self, dataset: Dataset) -> str:
        if dataset.is_streamed:
            readers = f"{self._workers} worker process(es)" if self._workers else "threads"
            return f"streamed from disk by {readers}"
        if fits_devices(dataset):
            return "all on the device"
        return "in memory, but not on the device"

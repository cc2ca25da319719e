"""Where a run's arrays lie, and the batches that it is fed with."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.data.dataset import Dataset
from flaxresnet.data.loader import DeviceSource, Loader, fits_devices
from flaxresnet.data.streaming import StreamSource, usual_workers


class InputPipeline:
    """The batches of a run, each divided over all devices of all processes.

    Attributes:
      replicated, split: the shardings of what every device has, and of a batch's leading axis.
      train, test: loaders.
      words: where the images are.
    """

    def __init__(self, config: TrainConfig, train: Dataset, test: Dataset) -> None:
        mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.split = NamedSharding(mesh, PartitionSpec("data"))
        self._config, self._workers = config, usual_workers() if config.workers is None else config.workers
        self.train, self.test = self._loader(train), self._loader(test)
        self.words = f"input: {train.images.nbytes / 2**20:,.0f} MiB of training images, {self._where(train)}"

    def _loader(self, dataset: Dataset) -> Loader:
        size = self._config.batch_size
        source: DeviceSource | StreamSource
        if dataset.is_streamed:
            source = StreamSource(dataset, size, self.split, self._workers, self._config.resolved_recipe.crop_min_area)
        elif fits_devices(dataset):
            source = DeviceSource(dataset, size, self.replicated, self.split)
        else:  # they go over from this process's memory batch by batch
            source = StreamSource(dataset, size, self.split, workers=0)
        return Loader(source, dataset, size, self.split)

    def _where(self, dataset: Dataset) -> str:
        if dataset.is_streamed:
            return f"streamed from disk by {f'{self._workers} worker process(es)' if self._workers else 'threads'}"
        return "all on the device" if fits_devices(dataset) else "in memory, but not on the device"

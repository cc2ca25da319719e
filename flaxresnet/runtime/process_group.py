"""The processes of a run that read its data together."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ProcessGroup:
    """All processes that open the same data. The default is a single process.

    Attributes:
      index: the index of this process, from 0.
      count: the number of processes.
      gather: returns the values of all processes, in the order of their indices, given this process's JSON value.
        Every process must call it.
    """

    index: int = 0
    count: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]

    def local_indices(self, count: int) -> np.ndarray:
        """Returns this process's part of the indices below `count`: consecutive, so that its reads are sequential."""
        return np.array_split(np.arange(count), self.count)[self.index]


SINGLE_PROCESS = ProcessGroup()

"""The processes of a run, as reading data sees them: which of them this is, and how they tell each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ProcessGroup:
    """All processes that open the same data together; by itself, one that is alone.

    Attributes:
      index, count: which of how many this is.
      gather: from what this process has, which JSON can say, to what each of them has, in their order. All of them
        have to call it.
    """

    index: int = 0
    count: int = 1
    gather: Callable[[Any], list[Any]] = lambda mine: [mine]

    def share(self, count: int) -> np.ndarray:
        """The places, of so many, that are this process's to look at: neighbours, as disks like them."""
        return np.array_split(np.arange(count), self.count)[self.index]


SINGLE_PROCESS = ProcessGroup()

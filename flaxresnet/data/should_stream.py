"""Decides whether a dataset is streamed from disk or read into memory."""

import os
from pathlib import Path

from flaxresnet.data.dataset import Input
from flaxresnet.runtime.errors import UserError
from flaxresnet.runtime.process_group import SINGLE_PROCESS, ProcessGroup

MEMORY_FRACTION = 0.25  # of this machine's memory, that images may take before they are streamed from disk


def should_stream(source: str | Path, nbytes: int, input: Input, processes: ProcessGroup = SINGLE_PROCESS) -> bool:
    """Whether images stay on disk, the same for all processes: the machine with the least memory decides.

    Raises UserError, in all of them, where memory was asked for that a machine has not.
    """
    mine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    memory = min((one for one in processes.gather(mine) if one is not None), default=None)
    if input == "memory" and memory and nbytes > memory:
        raise UserError(
            f"the images of {source} take {nbytes / 2**30:.1f} GiB, more than the {memory / 2**30:.1f} GiB of this "
            "machine; give --input stream"
        )
    return input == "stream" or (input == "auto" and memory is not None and nbytes > MEMORY_FRACTION * memory)

"""Decides whether a dataset is streamed from disk or read into memory."""

import os
from pathlib import Path

from flaxresnet.data.read_options import ReadOptions
from flaxresnet.runtime.errors import UserError

MEMORY_FRACTION = 0.25  # of the machine's memory; larger datasets are streamed


def should_stream(source: str | Path, nbytes: int, options: ReadOptions) -> bool:
    """Returns whether images stay on disk. Collective: every process gets the same answer.

    Args:
      source: path or name of the dataset, for the message.
      nbytes: bytes that all images take in memory.
      options: `input` is the user's choice; the machine with the least memory decides among `processes`.

    Raises:
      UserError: in every process, if `input` is "memory" and the images do not fit in the memory of one machine.
    """
    has_sysconf = hasattr(os, "sysconf")
    own_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if has_sysconf else None
    memories = [memory for memory in options.processes.gather(own_memory) if memory is not None]
    if options.input == "stream":
        return True
    if not memories:
        return False
    memory = min(memories)
    if options.input == "auto":
        return nbytes > MEMORY_FRACTION * memory
    if nbytes > memory:
        raise UserError(
            f"the images of {source} take {nbytes / 2**30:.1f} GiB, but a machine has {memory / 2**30:.1f} GiB of "
            "memory; give --input stream"
        )
    return False

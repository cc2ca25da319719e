"""Many processes as one: joining them, what only one of them does, and what is said when one is lost.

JAX's multi-controller runtime has every process run the same program on arrays that lie across all of them.
"""

import hashlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxresnet.config import TrainConfig
from flaxresnet.errors import UserError

T = TypeVar("T")

LOST_AFTER = 30  # seconds without a sign of life from a process, until the others end
END_TOGETHER = 60  # seconds that a finished process waits for the others
LOST = 75  # exit status, sysexits.h's "try again"


def join_processes(config: TrainConfig) -> None:
    """Makes this process one of a run's many, where the configuration says so.

    Raises UserError where the others cannot be found or reached.
    """
    given = config.coordinator_address, config.num_processes, config.process_id
    if jax.distributed.is_initialized() or not (config.distributed or any(value is not None for value in given)):
        return
    try:
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=LOST_AFTER, shutdown_timeout_seconds=END_TOGETHER)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the processes of the run could not be joined ({reason}); give --coordinator-address HOST:PORT, "
            "--num-processes and --process-id, or --distributed where Slurm, Open MPI, Kubernetes or a TPU tells them"
        ) from error


def is_one_of_many() -> bool:
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def by_the_first(act: Callable[[], T]) -> T | None:
    """Lets the first process act when all have come here, while the others wait: its result there, None elsewhere.

    Raises UserError in all of them where it does in the first.
    """
    result, mistake = None, None
    if is_one_of_many():  # what the others read before, it may be about to change
        multihost_utils.sync_global_devices("flaxresnet: the first acts")
    if is_first():
        try:
            result = act()
        except UserError as error:
            mistake = error
    if is_one_of_many():
        failed = bool(multihost_utils.broadcast_one_to_all(np.array(mistake is not None)))
        mistake = mistake or (UserError("process 0 could not go on; see what it says") if failed else None)
    if mistake:
        raise mistake
    return result


def check_same(**facts: object) -> None:
    """Raises UserError, in every process, where the processes were given different facts, such as other data."""
    if not is_one_of_many():
        return
    for name, fact in facts.items():
        digest = np.frombuffer(hashlib.sha256(repr(fact).encode()).digest(), np.uint8)
        if np.ptp(multihost_utils.process_allgather(digest), axis=0).any():
            raise UserError(
                f"the processes have different {name} (process {jax.process_index()} has {fact}); start all of them "
                "with the same options, on the same data"
            )


def told_to_stop(step: int) -> bool:
    """Whether some process was told to stop (SIGTERM): in the same step for all; every process has to ask."""
    return is_one_of_many() and multihost_utils.reached_preemption_sync_point(step)


@contextmanager
def ending_together() -> Iterator[None]:
    """Ends this process with status `LOST` and a sentence where another one is lost, for no step can be done alone.

    A lost process shows as a failed exchange at the next step, or by its silence for `LOST_AFTER` seconds, when JAX
    ends the others. What is raised for a failed exchange may be anything.
    """
    try:
        yield
    except Exception as error:
        if not is_one_of_many() or isinstance(error, UserError):
            raise
        traceback.print_exc()
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} ends, for another one was lost, or for "
            f"what is said above ({reason}); start all of them again to go on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST)  # the usual way out would wait for the lost one

"""Many processes as one: joining them, what only one of them does, and what is said when one is lost.

JAX's multi-controller runtime has every process run the same program on arrays that lie across all of them.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxresnet.runtime.errors import EXIT_USAGE, UserError
from flaxresnet.runtime.process_group import ProcessGroup

T = TypeVar("T")

JOIN_WITHIN = 300  # seconds, for all processes to start
LOST_AFTER = 30  # seconds without a sign of life from a process, until the others end
END_TOGETHER = 60  # seconds that a finished process waits for the others
LEAVE_WITHIN = 20  # seconds for a process that cannot go on, to end as usual
EXIT_TEMPFAIL = 75  # exit status, sysexits.h's "try again"


def join_processes(
    distributed: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Makes this process one of a run's many, if any argument says so. The arguments are options of `TrainConfig`.

    If the others do not come in time, ends the process with status `EXIT_TEMPFAIL` and a sentence, before JAX would
    abort it.

    Raises:
      UserError: nothing tells who the others are.
    """
    given = coordinator_address, num_processes, process_id
    if jax.distributed.is_initialized() or not (distributed or any(value is not None for value in given)):
        return
    late = threading.Timer(JOIN_WITHIN, _give_up, [coordinator_address])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            *given,
            initialization_timeout=2 * JOIN_WITHIN,  # at which it aborts with a stack trace
            heartbeat_timeout_seconds=LOST_AFTER,
            shutdown_timeout_seconds=END_TOGETHER,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the processes of the run could not be joined ({reason}); give --coordinator-address HOST:PORT, "
            "--num-processes and --process-id, or --distributed where Slurm, Open MPI, Kubernetes or a TPU tells them"
        ) from error
    finally:
        late.cancel()


def _give_up(coordinator_address: str | None) -> None:
    """Ends the process, which waits for others that do not come."""
    where = f"--coordinator-address {coordinator_address}" if coordinator_address else "--distributed"
    print(
        f"error: the processes of the run ({where}) did not all come together within {JOIN_WITHIN} s; see that the "
        "address is that of process 0, that its port can be reached, and that all of them were started, and start "
        "them again",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_TEMPFAIL)  # what it waits for cannot be interrupted


def is_multiprocess() -> bool:
    return jax.process_count() > 1


def is_process_zero() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def run_on_process_zero(act: Callable[[], T]) -> T | None:
    """Lets the first process act when all have come here, while the others wait: its result there, None elsewhere.

    Raises UserError in all of them where it does in the first.
    """
    result, mistake = None, None
    if is_multiprocess():  # what the others read before, it may be about to change
        multihost_utils.sync_global_devices("flaxresnet: the first acts")
    if is_process_zero():
        try:
            result = act()
        except UserError as error:
            mistake = error
    if is_multiprocess():
        failed = bool(multihost_utils.broadcast_one_to_all(np.array(mistake is not None)))
        mistake = mistake or (UserError("process 0 could not go on; see what it says") if failed else None)
    if mistake:
        raise mistake
    return result


def all_gather_json(mine: Any) -> list[Any]:
    """What each process has, which JSON can say, in their order; all of them have to ask."""
    if not is_multiprocess():
        return [mine]
    said = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(said)])).ravel()
    whole = multihost_utils.process_allgather(np.pad(said, (0, lengths.max() - len(said))))
    return [json.loads(row[:length].tobytes()) for row, length in zip(whole, lengths, strict=True)]


def process_group() -> ProcessGroup:
    """The processes of the run, for those who read its data."""
    return ProcessGroup(jax.process_index(), jax.process_count(), all_gather_json)


def require_equal_across_processes(**facts: object) -> None:
    """Raises UserError, in every process, where the processes were given different facts, such as other data."""
    said = all_gather_json({name: repr(fact) for name, fact in facts.items()})
    for name, fact in facts.items():
        if len({one.get(name) for one in said}) > 1:
            raise UserError(
                f"the processes have different {name} (process {jax.process_index()} has {fact}); start all of them "
                "with the same options, on the same data"
            )


def preemption_requested(asked: int) -> bool:
    """Whether some process was told to stop (SIGTERM), at the same time of asking for all.

    `asked` is how often this process has asked, now included: JAX finds the first number that none has reached yet.
    """
    return multihost_utils.reached_preemption_sync_point(asked)


@contextmanager
def exit_watchdog() -> Iterator[None]:
    """Lets a mistake of this process's own, such as a full disk, end all of them soon.

    The usual way out waits for the others, who wait for this one: it is given `LEAVE_WITHIN` seconds.
    """
    try:
        yield
    except UserError as error:
        if is_multiprocess():
            late = threading.Timer(LEAVE_WITHIN, _leave, [error])
            late.daemon = True
            late.start()
        raise


def _leave(error: UserError) -> None:
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(EXIT_USAGE)


@contextmanager
def exit_on_peer_failure() -> Iterator[None]:
    """Ends this process with status `EXIT_TEMPFAIL` and a sentence if another process is lost.

    A lost process shows as a failed exchange at the next step, or by its silence for `LOST_AFTER` seconds, when JAX
    ends the others. What is raised for a failed exchange may be anything.
    """
    try:
        yield
    except Exception as error:
        if not is_multiprocess() or isinstance(error, UserError):
            raise
        traceback.print_exc()
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} ends, for another one was lost, or for "
            f"what is said above ({reason}); start all of them again to go on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_TEMPFAIL)  # the usual way out would wait for the lost one

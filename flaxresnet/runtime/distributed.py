"""Several processes that train one run: joining, collective calls, and exits after a failure.

In JAX's multi-controller runtime, every process runs the same program on arrays that are sharded across all of them. A
collective call returns only after every process has made it.
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

JOIN_TIMEOUT = 300  # seconds for all processes to join
HEARTBEAT_TIMEOUT = 30  # seconds without a heartbeat after which a process counts as lost
SHUTDOWN_TIMEOUT = 60  # seconds that a finished process waits for the others
EXIT_TIMEOUT = 20  # seconds for a failed process to exit normally
EXIT_TEMPFAIL = 75  # exit status, sysexits.h's "try again"


def join_processes(
    distributed: bool = False,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the other processes of the run, if any argument is given and this process has not joined yet.

    The arguments are options of `TrainConfig`.

    If the others do not join within `JOIN_TIMEOUT`, prints an error and exits with status `EXIT_TEMPFAIL`. JAX would
    abort the process with a stack trace.

    Raises:
      UserError: neither the arguments nor the environment describe the other processes.
    """
    arguments = (coordinator_address, num_processes, process_id)
    is_requested = distributed or any(value is not None for value in arguments)
    if jax.distributed.is_initialized() or not is_requested:
        return
    watchdog = _start_timer(JOIN_TIMEOUT, _exit_without_peers, coordinator_address)
    try:
        jax.distributed.initialize(
            *arguments,
            initialization_timeout=2 * JOIN_TIMEOUT,  # after which JAX aborts the process
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the processes of the run could not be joined ({reason}); give --coordinator-address HOST:PORT, "
            "--num-processes and --process-id, or --distributed under Slurm, Open MPI, Kubernetes or on a TPU"
        ) from error
    finally:
        watchdog.cancel()


def _start_timer(seconds: float, function: Callable[..., None], *arguments: object) -> threading.Timer:
    """Starts a timer that does not keep the process alive."""
    timer = threading.Timer(seconds, function, arguments)
    timer.daemon = True
    timer.start()
    return timer


def _exit_without_peers(coordinator_address: str | None) -> None:
    """Prints an error and exits, because the other processes did not join."""
    flags = f"--coordinator-address {coordinator_address}" if coordinator_address else "--distributed"
    print(
        f"error: the processes of the run ({flags}) did not all join within {JOIN_TIMEOUT} s; check that the address "
        "is that of process 0, that its port is reachable and that all processes were started, then start them again",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_TEMPFAIL)  # the main thread is in a call that cannot be interrupted


def is_multiprocess() -> bool:
    """Returns whether the run has several processes."""
    return jax.process_count() > 1


def is_process_zero() -> bool:
    """Returns whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def run_on_process_zero(function: Callable[[], T]) -> T | None:
    """Runs a function on process 0 while the others wait. Collective call.

    Returns:
      The function's result on process 0, None on the others.

    Raises:
      UserError: on every process, if the function raises it on process 0.
    """
    result = None
    error = None
    if is_multiprocess():  # the function may change files that the others are still reading
        multihost_utils.sync_global_devices("flaxresnet: run_on_process_zero")
    if is_process_zero():
        try:
            result = function()
        except UserError as caught:
            error = caught
    if is_multiprocess():
        has_failed = bool(multihost_utils.broadcast_one_to_all(np.array(error is not None)))
        if has_failed and error is None:
            error = UserError("process 0 failed; see its error message")
    if error:
        raise error
    return result


def all_gather_json(value: Any) -> list[Any]:
    """Returns the values of all processes, in the order of their indices. Collective call.

    Args:
      value: this process's value; JSON must be able to represent it.
    """
    if not is_multiprocess():
        return [value]
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(encoded)])).ravel()
    rows = multihost_utils.process_allgather(np.pad(encoded, (0, lengths.max() - len(encoded))))
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def process_group() -> ProcessGroup:
    """Returns the processes of the run, for the modules that read data."""
    return ProcessGroup(jax.process_index(), jax.process_count(), all_gather_json)


def require_equal_across_processes(**values: object) -> None:
    """Raises UserError, in every process, if the processes have different values of a name. Collective call."""
    gathered = all_gather_json({name: repr(value) for name, value in values.items()})
    for name, value in values.items():
        if len({of_process.get(name) for of_process in gathered}) > 1:
            raise UserError(
                f"the processes have different {name} (process {jax.process_index()} has {value}); start all of them "
                "with the same options, on the same data"
            )


def preemption_requested(call_number: int) -> bool:
    """Returns whether any process received SIGTERM. All processes get the same answer for the same call number.

    Args:
      call_number: the number of calls in this process, including this one. After a SIGTERM, JAX picks the first number
        that no process has reached.
    """
    return multihost_utils.reached_preemption_sync_point(call_number)


@contextmanager
def exit_watchdog() -> Iterator[None]:
    """Exits after a UserError of one process, such as one for a full disk, even if the others do not.

    A normal exit waits for the other processes, which wait for this one. After `EXIT_TIMEOUT` seconds, the process
    exits without them.
    """
    try:
        yield
    except UserError as error:
        if is_multiprocess():
            _start_timer(EXIT_TIMEOUT, _exit_with_error, error)
        raise


def _exit_with_error(error: UserError) -> None:
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(EXIT_USAGE)


@contextmanager
def exit_on_peer_failure() -> Iterator[None]:
    """Exits with an error message and status `EXIT_TEMPFAIL` if another process is lost.

    After the loss, the next exchange between processes raises an exception of any type. If no exchange takes place, JAX
    ends the process after `HEARTBEAT_TIMEOUT` seconds.
    """
    try:
        yield
    except Exception as error:
        if not is_multiprocess() or isinstance(error, UserError):
            raise
        traceback.print_exc()
        lines = str(error).splitlines() or [""]
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} stops after the error above or the loss of "
            f"another process ({type(error).__name__}: {lines[0][:200]}); start all processes again to resume from the "
            "last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_TEMPFAIL)  # a normal exit would wait for the lost process

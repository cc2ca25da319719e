"""Graceful stop on Ctrl-C, SIGTERM and SIGHUP: the current step finishes, the state is saved, and training ends."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

from flaxresnet.runtime import distributed
from flaxresnet.runtime.errors import TrainingInterrupted

HANGUP = getattr(signal, "SIGHUP", None)  # a lost terminal or SSH connection; Windows has no such signal


class PreemptionHandler:
    """Records signals that ask training to stop. A context manager: it restores the previous handlers.

    A signal before `begin` exits at once, because there is nothing to save yet. A second signal also exits at once,
    unless it is SIGHUP, which a closing terminal may send twice. If SIGHUP is ignored, as under `nohup`, it stays so.
    With several processes, JAX handles SIGTERM, so that all processes stop after the same step, and this class forwards
    other signals as SIGTERM.
    """

    def __init__(self) -> None:
        self._queries = 0
        self._received: signal.Signals | None = None
        self._can_save = False
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in the main thread only
            handled = [signal.SIGINT]
            if not distributed.is_multiprocess():
                handled.append(signal.SIGTERM)
            if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:
                handled.append(HANGUP)
            self._previous_handlers = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """Marks that there is a state to save. From now on, the first signal takes effect after the current step."""
        self._can_save = True

    def wanted(self) -> signal.Signals | None:
        """Returns the signal that any process received, or None.

        A collective call: every process has to call it equally often, after each training step and before each batch
        of an evaluation.
        """
        if not distributed.is_multiprocess():
            return self._received
        self._queries += 1
        if not distributed.preemption_requested(self._queries):
            return None
        received = distributed.all_gather_json(self._received)
        return signal.Signals(next(filter(None, received), signal.SIGTERM))

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == HANGUP:
            _leave_lost_terminal()
            if self._received:
                return
        if self._received or not self._can_save:
            raise TrainingInterrupted(signal.Signals(number), "stopped; everything written so far is kept")
        self._received = signal.Signals(number)
        if distributed.is_multiprocess():
            os.kill(os.getpid(), signal.SIGTERM)


def _leave_lost_terminal() -> None:
    """Discards further output if the terminal is gone, because writing to it raises an OSError."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)

"""Graceful stop on Ctrl-C and SIGTERM: the current step finishes, the state is saved, and training ends."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

from flaxresnet.runtime import distributed
from flaxresnet.runtime.errors import TrainingInterrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class PreemptionHandler:
    """Records signals that ask training to stop. A context manager: it restores the previous handlers.

    Before `begin`, when there is nothing to save, a signal exits at once; so does a second signal. With several
    processes, JAX receives SIGTERM, so that all processes stop after the same step, and Ctrl-C is passed on as SIGTERM.
    """

    def __init__(self) -> None:
        self._queries = 0
        self._received: signal.Signals | None = None
        self._can_save = False
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in the main thread only
            handled = [signal.SIGINT] if distributed.is_multiprocess() else SIGNALS
            self._previous_handlers = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """Marks that there is a state to save: from now on, a signal waits for the end of the step."""
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
        interrupted = distributed.all_gather_json(self._received is not None)
        return signal.SIGINT if any(interrupted) else signal.SIGTERM

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._received or not self._can_save:
            raise TrainingInterrupted(signal.Signals(number), "stopped; everything written so far is kept")
        self._received = signal.Signals(number)
        if distributed.is_multiprocess():
            os.kill(os.getpid(), signal.SIGTERM)

"""Ctrl-C and SIGTERM: the step that is under way is finished and saved, then training ends."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

from flaxresnet.runtime import distributed
from flaxresnet.runtime.errors import TrainingInterrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class PreemptionHandler:
    """Hears that training is to stop; a context manager, in which signals wait for the end of a step.

    Before `begin`, when there is nothing to save, and at the second time a signal ends everything at once. Where there
    are several processes JAX hears SIGTERM, so that all of them stop at the same point, and Ctrl-C is passed on as one.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._heard: signal.Signals | None = None
        self._may_wait = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread hear signals
            heard = [signal.SIGINT] if distributed.is_multiprocess() else SIGNALS
            self._before = {number: signal.signal(number, self._hear) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """From now on there is something to save."""
        self._may_wait = True

    def wanted(self) -> signal.Signals | None:
        """The signal that was heard, if any, by any process.

        Asked after each training step and before each batch of an evaluation, by every process equally often.
        """
        if not distributed.is_multiprocess():
            return self._heard
        self._asked += 1
        if not distributed.preemption_requested(self._asked):
            return None
        return signal.SIGINT if any(distributed.all_gather_json(self._heard is not None)) else signal.SIGTERM

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self._heard or not self._may_wait:
            raise TrainingInterrupted(signal.Signals(number), "stopped; what had been written is kept")
        self._heard = signal.Signals(number)
        if distributed.is_multiprocess():
            os.kill(os.getpid(), signal.SIGTERM)

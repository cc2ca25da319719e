"""A trace of a few training steps, for XProf, TensorBoard's profiler or Perfetto."""

from pathlib import Path
from typing import Any, Self

import jax

SKIPPED_STEPS = 2  # steady steps to skip before the trace
TRACED_STEPS = 5


class StepProfiler:
    """Traces `TRACED_STEPS` steady steps of one epoch, or fewer if the epoch is short. A context manager.

    Attributes:
      written: whether a trace was written.
    """

    def __init__(self, folder: Path | None) -> None:
        """Writes to `folder`; None traces nothing."""
        self._folder = folder
        self._steady_steps = 0
        self._tracing = False
        self.written = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(None)

    def before_step(self, previous: Any, steady: bool) -> None:
        """Starts the trace before its first step, and ends it after its last step. Call it before each step.

        Args:
          previous: the result of the previous step. The call waits for it before it starts or ends a trace.
          steady: whether no other work, such as compilation, runs at the same time; other steps are not traced.
        """
        if not self._folder or not steady:
            return
        self._steady_steps += 1
        if self._steady_steps == SKIPPED_STEPS + 1:
            jax.block_until_ready(previous)
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        elif self._steady_steps == SKIPPED_STEPS + TRACED_STEPS + 1:
            self.end(previous)

    def end(self, last: Any) -> None:
        """Ends the trace if one is running, after waiting for `last`. Also call it after each epoch's last step."""
        if not self._tracing:
            return
        jax.block_until_ready(last)
        jax.profiler.stop_trace()
        self._tracing = False
        self._folder = None
        self.written = True

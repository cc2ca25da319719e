"""A trace of a few training steps, for XProf, TensorBoard's profiler or Perfetto."""

from pathlib import Path
from typing import Any, Self

import jax

SKIPPED_STEPS = 2  # steady steps before the trace
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
        """Starts or ends the trace, if this step is the first or the last. Call it before each step.

        Args:
          previous: the result of the step before, which a trace waits for.
          steady: whether nothing else runs, such as compilation.
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
        """Ends the trace if one is running; later calls do nothing. Call it after the last step of an epoch, too."""
        if not self._tracing:
            return
        jax.block_until_ready(last)
        jax.profiler.stop_trace()
        self._tracing = False
        self._folder = None
        self.written = True

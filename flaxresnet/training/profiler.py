"""A trace of a few steady training steps, for XProf, TensorBoard's profiler or Perfetto."""

from pathlib import Path
from typing import Any, Self

import jax

BEFORE = 2  # steady steps that are not in it
STEPS = 5  # that are in it


class StepProfiler:
    """Traces steps BEFORE + 1 to BEFORE + STEPS of those that are steady, or as many of them as an epoch has.

    A context manager: leaving it ends a trace that has begun.

    Attributes:
      written: whether there is a trace.
    """

    def __init__(self, folder: Path | None) -> None:
        """None for no trace."""
        self._folder, self._seen, self._tracing, self.written = folder, 0, False, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(None)

    def before_step(self, previous: Any, steady: bool) -> None:
        """To be called before each step; waits for the one before where a trace begins or ends.

        Args:
          previous: what the step before gave.
          steady: whether nothing else is under way, such as compilation.
        """
        if not self._folder or not steady:
            return
        self._seen += 1
        if self._seen == BEFORE + 1:
            jax.block_until_ready(previous)
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        elif self._seen == BEFORE + STEPS + 1:
            self.end(previous)

    def end(self, last: Any) -> None:
        """To be called after the last step of an epoch, too; ends a trace that has begun, and there is no other."""
        if self._tracing:
            jax.block_until_ready(last)
            jax.profiler.stop_trace()
            self._tracing, self._folder, self.written = False, None, True

"""A trace of a few steady training steps, for XProf, TensorBoard's profiler or Perfetto."""

from pathlib import Path
from typing import Any

import jax

BEFORE = 3  # steps that are not in it: the first ones wait for what later ones have
STEPS = 5  # that are in it


class Profile:
    """Traces steps BEFORE + 1 to BEFORE + STEPS that it sees, or as many of them as an epoch has."""

    def __init__(self, folder: Path | None) -> None:
        """None for no trace."""
        self._folder, self._seen = folder, 0

    def before_step(self, previous: Any) -> None:
        """To be called before each step with what the one before gave; waits for that where a trace begins or ends."""
        self._seen += 1
        if self._folder and self._seen == BEFORE + 1:
            jax.block_until_ready(previous)
            jax.profiler.start_trace(self._folder)
        elif self._seen == BEFORE + STEPS + 1:
            self.end(previous)

    def end(self, last: Any) -> None:
        """To be called after the last step of an epoch; ends a trace that has begun."""
        if self._folder and self._seen > BEFORE:
            jax.block_until_ready(last)
            jax.profiler.stop_trace()
            self._folder = None

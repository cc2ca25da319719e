"""Turns an out-of-memory error into a sentence that names the options to change."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.runtime.errors import UserError

OOM_TEXTS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")  # in XLA's messages


@contextmanager
def oom_as_user_error(config: TrainConfig) -> Iterator[None]:
    """Raises UserError, with options that need less memory, if the device or the host runs out of memory."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        message = str(error).strip() or "no memory left"
        if isinstance(error, jax.errors.JaxRuntimeError) and not any(text in message for text in OOM_TEXTS):
            raise
        first_line = message.splitlines()[0][:200]
        parts = 2 * config.grad_accum_steps
        raise UserError(
            f"not enough memory for --batch-size {config.batch_size} ({first_line}); give a smaller one, or "
            f"--grad-accum-steps {parts} for the same batch in {parts} parts, or --input stream to leave the images "
            "on the disk; everything saved so far is kept"
        ) from error

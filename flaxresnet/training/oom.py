"""What is said where a device, or the machine, has not enough memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from flaxresnet.config.train_config import TrainConfig
from flaxresnet.runtime.errors import UserError

MARKS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")  # in what XLA says then


@contextmanager
def oom_as_user_error(config: TrainConfig) -> Iterator[None]:
    """Turns a lack of memory into a UserError that names the options that need less."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        text = str(error).strip() or "no memory was left"
        if isinstance(error, jax.errors.JaxRuntimeError) and not any(mark in text for mark in MARKS):
            raise
        parts = 2 * config.grad_accum_steps
        raise UserError(
            f"there is not enough memory for --batch-size {config.batch_size} ({text.splitlines()[0][:200]}); give "
            f"fewer, or --grad-accum-steps {parts} for the same batch in {parts} parts, or --input stream to keep "
            "images there; what was saved is kept"
        ) from error

"""Turns the end of a command into an exit status, and a user's mistake into one sentence on standard error."""

import logging
import os
import sys
from collections.abc import Callable

from flaxresnet.runtime.errors import EXIT_USAGE, TrainingInterrupted, UserError

INTERRUPTED = 130  # 128 + SIGINT, as shells count
CLOSED_PIPE = 141  # 128 + SIGPIPE


def run(main: Callable[[], int]) -> int:
    """Returns the exit status of `main`. Reports a user's mistake or Ctrl-C in a sentence on standard error."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without Unicode shows "?" rather than a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # Orbax reports every save's stages as warnings; a run prints one line an epoch.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        return main()
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)  # a name in a file may break lines
        return EXIT_USAGE
    except BrokenPipeError:  # `predict … | head`: nobody reads on, which is no mistake
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except TrainingInterrupted as stop:
        print(stop, file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("interrupted; what had been written is kept", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        if sentence := _why_no_device():
            print(f"error: {sentence}", file=sys.stderr)
            return EXIT_USAGE
        raise


def _why_no_device() -> str | None:
    """Returns a sentence if JAX_PLATFORMS names a device that JAX cannot use here, which JAX reports in many ways."""
    asked = os.environ.get("JAX_PLATFORMS")
    if not asked or "jax" not in sys.modules:
        return None
    try:
        sys.modules["jax"].devices()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return (
            f"JAX_PLATFORMS={asked} asks for a device that JAX cannot use here ({reason}); install the extra that it "
            "needs, such as 'flaxresnet[cuda12]', or unset it to compute on what there is"
        )
    return None

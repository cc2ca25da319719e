"""Exit statuses of commands, and errors as one sentence on standard error."""

import logging
import os
import sys
from collections.abc import Callable

from flaxresnet.runtime.errors import EXIT_USAGE, TrainingInterrupted, UserError

EXIT_INTERRUPTED = 130  # 128 + SIGINT, the shells' convention
EXIT_CLOSED_PIPE = 141  # 128 + SIGPIPE


def run(main: Callable[[], int]) -> int:
    """Calls `main` and returns its exit status. Reports a UserError or Ctrl-C in one sentence on standard error."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without Unicode shows "?" instead of a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # Orbax logs the stages of each save as warnings.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        return main()
    except UserError as error:
        print(f"error: {_error_text(error)}", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:  # `predict … | head` closes the pipe, which is not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE
    except TrainingInterrupted as stop:
        print(stop, file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("interrupted; files that were already written remain", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception:
        sentence = _missing_device()
        if sentence:
            print(f"error: {sentence}", file=sys.stderr)
            return EXIT_USAGE
        raise


def _error_text(error: UserError) -> str:
    """Returns the message in one line, followed by the indented lines of a list if it ends with one."""
    lines = str(error).split("\n  ")
    return "\n  ".join(" ".join(line.splitlines()) for line in lines)  # a file name may contain line breaks


def _missing_device() -> str | None:
    """Returns a sentence if JAX_PLATFORMS names a device that JAX cannot use, whatever error JAX raised."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if not platforms or "jax" not in sys.modules:
        return None
    try:
        sys.modules["jax"].devices()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return (
            f"JAX_PLATFORMS={platforms} asks for a device that JAX cannot use here ({reason}); install the extra that "
            "it needs, such as 'flaxresnet[cuda12]', or unset JAX_PLATFORMS to use an available device"
        )
    return None

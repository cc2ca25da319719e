"""`python -m flaxresnet COMMAND …`, the same as `flaxresnet COMMAND …`."""

import sys

from flaxresnet.cli.main import entry_point

if __name__ == "__main__":
    sys.exit(entry_point())

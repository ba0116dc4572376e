"""``python -m fx_partition`` is the command ``fx-partition``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())

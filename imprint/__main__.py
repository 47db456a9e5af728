"""`python -m imprint` is the command `imprint`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())

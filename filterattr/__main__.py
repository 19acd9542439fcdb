"""``python -m filterattr``."""

import sys

from filterattr.cli import main

if __name__ == "__main__":
    sys.exit(main())

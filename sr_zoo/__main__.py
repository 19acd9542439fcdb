"""``python -m sr_zoo``."""

import sys

from sr_zoo.cli import main

sys.exit(main())

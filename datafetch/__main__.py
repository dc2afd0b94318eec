"""``python -m datafetch`` is the command ``datafetch``."""

import sys

from datafetch.cli import main

sys.exit(main())

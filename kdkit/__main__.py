"""python -m kdkit: the command line."""

import sys

from kdkit.cli import main

sys.exit(main())

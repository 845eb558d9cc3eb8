"""`python -m launch`: the same as `widebatch`."""

import sys

from launch.cli import main

sys.exit(main())

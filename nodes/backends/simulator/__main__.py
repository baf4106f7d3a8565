"""Start one simulated backend: `python -m nodes.backends.simulator`."""

import sys

from .process import main

sys.exit(main())

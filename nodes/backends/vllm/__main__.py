"""Start one vLLM backend: `python -m nodes.backends.vllm`."""

import sys

from .process import main

sys.exit(main())

"""The tests, and what they have in common."""

import sys
from pathlib import Path

# Whatever the environment says to our children: else each worker compiles all tests each time.
sys.dont_write_bytecode = False
sys.pycache_prefix = str(Path(__file__).parents[1] / "build" / "pycache")

"""The tests, and what they have in common."""

import os
import sys
from pathlib import Path

# Whatever the environment says to our children: else each worker compiles all tests each time.
sys.dont_write_bytecode = False
sys.pycache_prefix = str(Path(__file__).parents[1] / "build" / "pycache")

if "PYTEST_XDIST_WORKER" in os.environ:  # it is measured, but not the processes that tests start
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)

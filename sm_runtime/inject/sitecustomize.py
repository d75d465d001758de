"""Runs at the start of each Python process of the user's: SIGUSR1 then dumps its stacks.

This folder is last on the PYTHONPATH that the runtime adds. A ``sitecustomize`` that this one
hides is run as if this one were not there.
"""

import faulthandler
import signal
import sys

try:
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
except (AttributeError, OSError, RuntimeError, ValueError):
    pass  # no standard error, or no such signal here: no stacks then


def _run_hidden() -> None:
    import os
    from importlib.machinery import PathFinder

    here = os.path.dirname(os.path.abspath(__file__))
    path = [entry for entry in sys.path if os.path.abspath(entry) != here]
    spec = PathFinder.find_spec("sitecustomize", path)
    if spec is not None and spec.loader is not None:
        from importlib.util import module_from_spec

        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


_run_hidden()

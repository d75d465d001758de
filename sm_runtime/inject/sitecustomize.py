"""Runs at the start of each Python process of the user's: SIGUSR1 then dumps its stacks.

What imports ``sagemaker_training`` or ``sagemaker_containers``, and has no such package, gets the
one in ``standin``: a finder behind all others has it.

Its folder is last of those that the runtime adds to PYTHONPATH. It takes itself off ``sys.path``,
so that a ``sitecustomize`` which it hides runs as if this one were not there.
"""

import faulthandler
import os
import sys
from _frozen_importlib_external import PathFinder  # has been imported, unlike `importlib`
from _signal import SIGUSR1  # `signal` itself would cost each process 4 ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

try:
    faulthandler.register(SIGUSR1, file=2, all_threads=True)
    dumps_stacks = True
except (OSError, RuntimeError, ValueError):  # no standard error
    dumps_stacks = False

_here = os.path.dirname(os.path.abspath(__file__))


class _StandIns:
    """Finds the packages in ``standin``."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        if name in ("sagemaker_training", "sagemaker_containers"):
            return PathFinder.find_spec(name, [_here + "/standin"])
        return None


sys.meta_path.append(_StandIns)
sys.path[:] = [entry for entry in sys.path if entry != _here]
_self = sys.modules.pop(__name__)
try:
    __import__(__name__)
except ImportError as error:
    if error.name != __name__:
        raise
    sys.modules[__name__] = _self

"""Programs that run in processes of their own, where others start them or in the script's place.

They are run as files: ``python -m`` imports modules of the job's before any of ours.
"""

from __future__ import annotations

import os

_HERE = os.path.dirname(os.path.abspath(__file__))
LAUNCHER_STUB = os.path.join(_HERE, "launcher_stub.py")
RANK = os.path.join(_HERE, "rank.py")
_START = os.path.join(_HERE, "start.py")


def start(python: str, target: str) -> tuple[str, ...]:
    """Return the argument vector that runs ``target``, a module or a function ``module:function``.

    A module gets the arguments that follow.
    """
    return (python, _START, target)

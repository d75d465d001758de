"""Runs a module, or calls a function of one: ``start.py MODULE[:FUNCTION] ARGUMENT...``.

The standard library comes first on the path, then the folders of PYTHONPATH, which hold the job's
code, then what is installed: a ``types.py`` of the job's is for its script alone. The package
``sm_runtime`` is that of this file. It is run as a file, and imports nothing that Python has not
imported at its own start before the path is in order.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    """Do it; what the function returns means nothing."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in _ordered(sys.path) if folder != here]
    sys.path.insert(0, os.path.dirname(os.path.dirname(here)))
    import sm_runtime  # noqa: F401

    del sys.path[0]
    name, _, function = sys.argv.pop(1).partition(":")
    if not function:
        import runpy

        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return
    __import__(name)
    found: Any = sys.modules[name]
    for part in function.split("."):
        found = getattr(found, part)
    found()


def _ordered(path: "list[str]") -> "list[str]":
    """Return ``path`` with the folders of the standard library first."""
    library = os.path.dirname(os.__file__)
    archive = f"python{sys.version_info[0]}{sys.version_info[1]}.zip"
    first = [
        folder
        for folder in path
        if folder == library or os.path.basename(folder) in ("lib-dynload", archive)
    ]
    return first + [folder for folder in path if folder not in first]


if __name__ == "__main__":
    main()

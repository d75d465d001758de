"""Keeps the job's code out of this process, which imports nothing from PYTHONPATH or its folder.

The commands start Python with ``-I``. ``python -m sm_runtime`` cannot: it takes the working folder
off ``sys.path``, and starts itself anew with ``-I`` where a module of the job's may have been
imported already. This module imports nothing that Python has not imported at its own start, not
even ``__future__``: a job may have a module of that name.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_LEADS_ELSEWHERE = ("PYTHONPATH", "PYTHONUSERBASE")


def enter(environ: "Mapping[str, str]") -> None:
    """Take the job's folders off ``sys.path``; to be called before any other import.

    Does not return where this process has to be started anew. Requests to stop wait from now on,
    until the supervisor is there for them.
    """
    _hold_stops()
    if sys.flags.isolated:
        return
    folder = sys.path.pop(0) if not getattr(sys.flags, "safe_path", False) else None
    if any(map(environ.get, _LEADS_ELSEWHERE)) or _imported_from(folder):
        _restart()


def _hold_stops() -> None:
    """Block the signals that ask for a stop: those stay pending, where PID 1 would lose them."""
    import _signal  # part of Python's core: `signal` itself takes a millisecond

    stops = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT)
    _signal.pthread_sigmask(_signal.SIG_BLOCK, stops)


def _imported_from(folder: "str | None") -> bool:
    """Whether a module has been imported from ``folder`` itself."""
    if folder is None:
        return False
    files = [
        getattr(module, "__file__", None) or ""
        for name, module in list(sys.modules.items())
        if "." not in name and name != "__main__"
    ]
    places = {os.path.dirname(file.replace("/__init__.py", ".py")) for file in files}
    return os.path.abspath(folder) in places


def _restart() -> None:
    """Run this file with ``-I`` in place of this process, with the same options and arguments."""
    given = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]
    options = given[:-2] if given[-2:] == ["-m", "sm_runtime"] else []
    options += ["-X", f"utf8={sys.flags.utf8_mode}", *(["-B"] if sys.dont_write_bytecode else [])]
    words = [*options, os.path.abspath(__file__), *sys.argv[1:]]
    os.execv(sys.executable, [sys.executable, "-I", *words])


def _main() -> int:
    """Run the command from where this file is, wherever that may be."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path.insert(0, root)
    import sm_runtime  # noqa: F401  # from now on its modules are found by its own path

    del sys.path[0]
    if root not in sys.path:
        sys.path.append(root)  # what is installed with it
    from sm_runtime.__main__ import main

    return main()


if __name__ == "__main__":
    sys.exit(_main())

"""Runs a Python script as a rank: an uncaught exception ends the process at once.

Else a rank that fails would wait in ``MPI_Finalize``, or in Horovod's shutdown, for ranks that wait
for it. ``python -m mpi4py`` does the same, and needs mpi4py.
"""

from __future__ import annotations

import os
import sys
import traceback
from types import TracebackType

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is costly to import
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> None:
    """Run what the arguments say: ``script.py ...`` or ``-m module ...``."""
    import runpy

    # This module's name is no script's business.
    arguments = sys.argv[1:]
    try:
        if arguments[0] == "-m":
            sys.path[0] = os.getcwd()
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = os.path.dirname(os.path.realpath(arguments[0]))
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as error:
        if error.code not in (None, 0):
            if not isinstance(error.code, int):
                print(error.code, file=sys.stderr)
            _end(error.code if isinstance(error.code, int) else 1)
    except KeyboardInterrupt:
        _end(130)
    except BaseException as error:
        shown = _below(error.__traceback__)
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exception(type(error), error, shown)
        else:
            sys.excepthook(type(error), error, shown)
        _end(1)


def _below(found: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that is the script's own."""
    own = (__file__, "<frozen runpy>", "runpy.py")
    at = found
    while at is not None and at.tb_frame.f_code.co_filename.endswith(own):
        at = at.tb_next
    return at or found


def _end(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
    os._exit(status & 0xFF)


if __name__ == "__main__":
    main()

"""Runs a Python script as a rank: an uncaught exception ends the process at once.

Else a rank that fails would wait in ``MPI_Finalize``, or in Horovod's shutdown, for ranks that wait
for it. ``python -m mpi4py`` does the same, and needs mpi4py. It is run as a file, and imports
nothing that Python has not imported at its own start: what it loaded, the script would get in place
of a module of its own.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import NoReturn


def main() -> None:
    """Run what the arguments say: ``script.py ...`` or ``-m module ...``."""
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the folder of this file
    arguments = sys.argv[1:]
    try:
        if arguments[0] == "-m":
            _run_module(arguments[1:])
        else:
            _run_script(arguments)
    except SystemExit as error:
        if error.code not in (None, 0):
            if not isinstance(error.code, int):
                print(error.code, file=sys.stderr)
            _end(error.code if isinstance(error.code, int) else 1)
    except KeyboardInterrupt:
        _end(130)
    except BaseException as error:
        shown = _below(error.__traceback__)
        sys.excepthook(type(error), error.with_traceback(shown), shown)
        _end(1)


def _run_module(arguments: "list[str]") -> None:
    """Do what ``python -m`` does."""
    _search_first(os.getcwd())
    import runpy

    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def _run_script(arguments: "list[str]") -> None:
    """Do what ``python script.py`` does."""
    path = os.path.abspath(arguments[0])
    _search_first(os.path.dirname(os.path.realpath(path)))
    sys.argv = arguments
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    module = type(sys)("__main__")
    loader = type(globals()["__loader__"])("__main__", path)
    module.__dict__.update(
        __builtins__=__builtins__, __cached__=None, __file__=path, __loader__=loader
    )
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


def _search_first(folder: str) -> None:
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, folder)


def _below(found: "TracebackType | None") -> "TracebackType | None":
    """Return the part of a traceback that is the script's own."""
    own = (__file__, "<frozen runpy>", "runpy.py")
    while found is not None and found.tb_frame.f_code.co_filename.endswith(own):
        found = found.tb_next
    return found


def _end(status: int) -> "NoReturn":
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
    os._exit(status & 0xFF)


if __name__ == "__main__":
    main()

"""Runs commands as children: their signals, their standard error, and their failures."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from typing import Any, Iterator, Mapping, Sequence

from . import environment, errors, logging_config

_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_TAIL_BYTES = 16384
"""How much of the standard error is kept for an exception."""
_TAIL_LINES = 20
_DRAIN_SECONDS = 1.0
"""How long the last output may take where something holds it open."""
_TRACEBACK = "Traceback (most recent call last):"


class Child:
    """A child whose standard error passes through here, if it is to be kept."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._tail = b""
        self._relay = threading.Thread(target=self._pass_on, daemon=True)
        if process.stderr is not None:
            self._relay.start()

    def wait(self) -> int:
        """Wait for the end; return the status as a shell gives it."""
        with _left_to_the_child():
            status = self.process.wait()
        if self.process.stderr is not None:
            self._relay.join(_DRAIN_SECONDS)
        return status if status >= 0 else 128 - status

    def last_error(self) -> str | None:
        """Return its last traceback, or its last lines; None where they are not kept."""
        if self.process.stderr is None:
            return None
        lines = self._tail.decode("utf-8", "replace").rstrip().splitlines()
        starts = [i for i, line in enumerate(lines) if line.strip() == _TRACEBACK]
        return "\n".join(lines[starts[-1] if starts else -_TAIL_LINES :])

    def _pass_on(self) -> None:
        assert self.process.stderr is not None
        while True:
            data = os.read(self.process.stderr.fileno(), 65536)
            if not data:
                return
            self._tail = (self._tail + data)[-_TAIL_BYTES:]
            with contextlib.suppress(OSError):  # nobody reads it: the child is not to notice
                while data:
                    data = data[os.write(2, data) :]


class ProcessRunner:
    """Runs the user's script."""

    def __init__(
        self,
        user_entry_point: str,
        args: Sequence[str],
        env_vars: Mapping[str, str],
        processes_per_host: int = 1,
    ) -> None:
        self._user_entry_point = user_entry_point
        self._args = list(args)
        self._env_vars = env_vars

    def run(self, wait: bool = True, capture_error: bool = False) -> subprocess.Popen[bytes]:
        """Run it, to its end unless ``wait`` is false.

        Raises ExecuteUserScriptError.
        """
        command = [*_program(self._user_entry_point), *self._args]
        logging_config.log_script_invocation(command)
        if not wait:
            return start(command, None, capture_error).process
        return check_error(command, errors.ExecuteUserScriptError, 1, None, capture_error)


def check_error(
    cmd: Sequence[str],
    error_classes: Any,
    processes_per_host: int = 1,
    cwd: str | None = None,
    capture_error: bool = True,
    **kwargs: Any,
) -> subprocess.Popen[bytes]:
    """Run a command to its end, in the code folder unless ``cwd`` says where.

    Raises the first of ``error_classes`` that is one of a command's, or ExecuteUserScriptError.
    """
    classes = error_classes if isinstance(error_classes, (list, tuple)) else [error_classes]
    own = [c for c in classes if isinstance(c, type) and issubclass(c, errors._CalledProcessError)]
    error_class = own[0] if own else errors.ExecuteUserScriptError
    shown = " ".join(map(shlex.quote, cmd))
    try:
        child = start(cmd, cwd, capture_error, **kwargs)
    except OSError as error:
        raise error_class(cmd=shown, return_code=127, output=str(error)) from error
    status = child.wait()
    if status:
        info = None
        if status == 128 + signal.SIGKILL:
            info = "killed by SIGKILL (signal 9)"
        raise error_class(cmd=shown, return_code=status, output=child.last_error(), info=info)
    return child.process


def start(
    cmd: Sequence[str], cwd: str | None = None, capture_error: bool = False, **kwargs: Any
) -> Child:
    """Start a command, in the code folder unless ``cwd`` says where."""
    if cwd is None and os.path.isdir(environment.code_dir):
        cwd = environment.code_dir
    kwargs.setdefault("stderr", subprocess.PIPE if capture_error else None)
    return Child(subprocess.Popen(list(cmd), cwd=cwd, **kwargs))


def python_executable() -> str:
    """Return the path of this Python.

    Raises RuntimeError where it is not known.
    """
    if not sys.executable:
        raise RuntimeError("Failed to retrieve the real path for the Python executable binary")
    return sys.executable


def make_executable(path: str) -> None:
    """Let the owner execute a file."""
    if os.path.isfile(path) and not os.access(path, os.X_OK):
        os.chmod(path, os.stat(path).st_mode | 0o100)


def _program(name: str | None) -> list[str]:
    """Return what runs a program of the code folder: for the job's own, as the runtime does."""
    if not name:
        raise errors.ClientError("the job names no program: set SAGEMAKER_PROGRAM")
    if name == os.environ.get("SM_USER_ENTRY_POINT"):
        command = json.loads(os.environ.get("SM_RUNTIME_COMMAND") or "[]")
        args = json.loads(os.environ.get("SM_USER_ARGS") or "[]")
        if command[len(command) - len(args) :] == args:
            command = command[: len(command) - len(args)]
            if command:
                return list(command)
    path = os.path.join(environment.code_dir, name)
    if name.endswith(".py"):
        module = name[:-3].replace("/", ".")
        return [python_executable(), *([name] if os.path.isfile(path) else ["-m", module])]
    make_executable(path)
    return [*_interpreter(path), name if os.path.isabs(name) else f"./{name}"]


def _interpreter(path: str) -> list[str]:
    """Return what runs a file that says nothing of it: a shell."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError:
        return []
    return [] if head.startswith(b"#!") or b"\0" in head else ["/bin/sh"]


@contextlib.contextmanager
def _left_to_the_child() -> Iterator[None]:
    """Let stop signals pass: the runtime sends them to the child as well, which ends in its time.

    A handler that does nothing, and not SIG_IGN, which the child would inherit.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _STOPS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)

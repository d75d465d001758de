"""Jobs in this process, on a base folder: nothing is started, what would be is a value.

``train`` takes a job from its configuration to its reports with the runtime's own code. Only the
supervisor is not real: ``script`` does what the script would, and says how it ended.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from traceback import format_exception
from types import CodeType
from typing import Any
from unittest import mock

from sm_runtime import check, run
from sm_runtime.export import command, options
from sm_runtime.job.model import Command, Ended
from sm_runtime.job.secrets import Mask
from sm_runtime.job.text import Tail
from sm_runtime.processes.relay import TAIL_BYTES, log_to
from sm_runtime.processes.workload import Start, Workload
from tests.harness import Base, eventually

Script = Callable[[Command], Ended | None]


@dataclass
class Dry:
    """What came of a job, or of a command that looks at one."""

    status: int
    out: str
    log: str
    commands: list[Command] = field(default_factory=list)

    @property
    def argv(self) -> tuple[str, ...]:
        """The argument vector of the script."""
        (command,) = self.commands
        return tuple(command.argv)

    @property
    def environ(self) -> dict[str, str]:
        """The variables of the script."""
        (command,) = self.commands
        return dict(command.env)


class _NoProcess:
    """Stands where the supervisor stands, and notes what is to be started."""

    stopped_by = signalled_at = None

    def __init__(self, script: Script) -> None:
        self.commands: list[Command] = []
        self._script = script

    def run(self, workload: Workload, **_: object) -> dict[int, Ended]:
        (start,) = workload.begin(0.0)
        assert isinstance(start, Start)
        self.commands.append(start.command)
        return {start.key: self._script(start.command) or Ended(status=0)}

    def capture(self, command: Command, *_: object) -> Ended:
        raise AssertionError(f"an installer is started: {command.argv}")

    def wait_until(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        eventually(condition, "the data is in place")
        return True

    def ask(self, reason: str) -> None:
        raise AssertionError(f"a stop is asked for: {reason}")

    def when_stopped(self, action: Callable[[], None]) -> None:
        pass

    def exclude(self, pid: int) -> None:
        pass

    def wake(self) -> None:
        pass

    def drain_output(self, until: float) -> None:
        pass


def train(base: Base, script: Script = lambda _: None, **environ: str) -> Dry:
    """Run the job as ``sm-runtime train`` does, but for its processes."""
    supervisor: Any = _NoProcess(script)
    with _logged() as (mask, log):
        status = run.train({**base.environ, **environ}, supervisor, mask)
    return Dry(status, "", log.text(), supervisor.commands)


def look(base: Base, *words: str, **environ: str) -> Dry:
    """Run ``sm-runtime check``, with ``--model`` or not, ``export`` or ``env``, with options."""
    variables = {**base.environ, **environ}
    secrets = "--show-secrets" in words
    with _logged() as (mask, log), redirect_stdout(io.StringIO()) as out:
        if words[:2] == ("check", "--model"):
            status = check.model(variables, "".join(words[2:]))
        elif words[0] == "export":
            status = command.export(_options(words[1:]), mask)
        elif words[0] == "check":
            status = check.check(variables, mask)
        elif "--launch" in words:
            status = check.launch(variables, mask, secrets=secrets)
        else:
            status = check.show(variables, mask, as_json="--json" in words, secrets=secrets)
    return Dry(status, out.getvalue(), log.text())


def _options(words: tuple[str, ...]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options.add(parser)
    return parser.parse_args(words)


class _Abort(BaseException):
    pass


def executed(command: Command) -> Ended:
    """Run the code of a Python script here, and return how its process would have ended."""
    out, err, folder = io.StringIO(), io.StringIO(), os.getcwd()
    name = command.argv[1]
    with (
        mock.patch.dict(os.environ, command.env, clear=True),
        mock.patch.object(sys, "argv", list(command.argv[1:])),
        mock.patch.object(os, "abort", side_effect=_Abort),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        os.chdir(command.cwd)
        try:
            status = _status_of(compile(Path(name).read_text(), name, "exec"))
        finally:
            os.chdir(folder)
    tails = []
    for stream in (err, out):
        tail = Tail(TAIL_BYTES)
        tail.add(stream.getvalue().encode("utf-8", "backslashreplace"))
        tails.append(tail.read())
    number = status - 128 if status > 128 else None
    return Ended(status=status, signal=number, tail=tails[0], stdout_tail=tails[1])


def _status_of(code: CodeType) -> int:
    try:
        exec(code, {"__name__": "__main__"})
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
            return 1
        return error.code or 0
    except _Abort:
        return 134
    except Exception as error:
        assert error.__traceback__ is not None
        sys.stderr.write("".join(format_exception(type(error), error, error.__traceback__.tb_next)))
        return 1
    return 0


class _Lines:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def write_line(self, line: bytes) -> None:
        self._lines.append(line)

    def text(self) -> str:
        return b"".join(line + b"\n" for line in self._lines).decode()


@contextmanager
def _logged() -> Iterator[tuple[Mask, _Lines]]:
    """Have the log written as the command writes it, and leave logging as it was."""
    logger, mask, sink = logging.getLogger("sm_runtime"), Mask(), _Lines()
    before = logger.level, logger.propagate, logger.handlers[:]
    handler: Any = sink
    log_to(handler, mask)
    try:
        yield mask, sink
    finally:
        logger.handlers[:] = before[2]
        logger.propagate = before[1]
        logger.setLevel(before[0])

"""Says why a script failed, from how it ended and what it wrote last; a pure function of both."""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from sm_runtime.job import text as characters
from sm_runtime.job.errors import JobError
from sm_runtime.job.model import Command, Ended, Json
from sm_runtime.job.text import printable

HEADLINE_CHARACTERS = 200
"""The most that the first line takes."""
TEXT_CHARACTERS = 1024
"""The most that a platform reads of ``output/failure``."""
LAST_LINES = 20
_MESSAGE_CHARACTERS = 4096
_HOST_CHARACTERS = 64
_LINE_CHARACTERS = 400
"""How much of a line ``output/failure`` shows, where all do not fit."""
_TOOLKIT_CHARACTERS = 100
"""The most of a message, and of a command, in the form of SageMaker's toolkit."""
_CAUSES = 3
"""How many of the exceptions that led to the last one are named there."""
_CRASHES = (signal.SIGABRT, signal.SIGSEGV)
"""Signals by which a process ends that cannot clean up after an exception."""
_JSON = {"name": "class", "status": "exit"}
"""What fields are called in ``failure.json``, where they have another name there."""
_BUS = re.compile(r"\bSIGBUS\b|\bBus error\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a job failed."""

    name: str
    """The class of the exception, or of our own error."""
    message: str
    phase: str
    """``config``, ``download``, ``code``, ``install``, ``launch``, ``train`` or ``upload``."""
    status: int
    signal: str | None = None
    file: str | None = None
    line: int | None = None
    rank: int | None = None
    host: str | None = None
    oom: bool = False
    last_lines: tuple[str, ...] = ()
    command: str | None = None
    """The command that failed, as a shell has it, where it is the user's."""

    def headline(self) -> str:
        """Return ``Class: message (file:line) [host, exit N]``, 200 characters at most."""
        who = [f"rank {self.rank}"] if self.rank is not None else []
        who += [_clip(self.host, _HOST_CHARACTERS)] if self.host else []
        end = f" [{', '.join([*who, f'exit {self.status}'])}]"
        name = _clip(self.name, 60)
        room = HEADLINE_CHARACTERS - len(end) - len(name) - 2
        place = f"{self.file}:{self.line}" if self.file else ""
        if place:  # the end of a path tells more than its beginning
            most = max(20, min(80, room // 2))
            place = f" ({place if len(place) <= most else '...' + place[3 - most :]})"
        message = _clip(" ".join(self.message.split()), room - len(place))
        return printable(f"{name}: {message}{place}{end}" if message else f"{name}{place}{end}")

    def text(self) -> str:
        """Return the text of ``output/failure``: the headline, then the end of the traceback."""
        head = f"{self.headline()}\nphase: {self.phase}\n"
        message = printable(" ".join(self.message.split()))
        if not any(
            message[:_LINE_CHARACTERS] in " ".join(text.split())
            for text in (head, *self.last_lines)
        ):
            room = _LINE_CHARACTERS if self.last_lines else TEXT_CHARACTERS - len(head) - 1
            head += f"{_clip(message, room)}\n"
        tail = self._as_the_toolkit()
        room = TEXT_CHARACTERS - len(head) - len(tail)
        lines = _fitting([*map(printable, self.last_lines)], room - bool(tail))
        return head + lines + ("\n" * (bool(tail) and bool(lines)) + tail)

    def _as_the_toolkit(self) -> str:
        """Return what tools look for: what SageMaker's training toolkit writes of a script."""
        if self.command is None:
            return ""
        message = printable(" ".join(self.message.split())).replace('"', "'")
        command = printable(self.command).replace("\n", " ")
        return (
            f"ExecuteUserScriptError:\nExitCode {self.status}\n"
            f'ErrorMessage "{_clip(message, _TOOLKIT_CHARACTERS)}"\n'
            f'Command "{_clip(command, _TOOLKIT_CHARACTERS)}"'
        )

    def as_dict(self) -> dict[str, Json]:
        """Return what ``failure.json`` holds; ``from_dict`` is the way back."""
        found = {_JSON.get(each.name, each.name): getattr(self, each.name) for each in fields(self)}
        return {**found, "last_lines": list(self.last_lines)}

    @classmethod
    def from_dict(cls, found: Mapping[str, Json]) -> Failure:
        """Return the failure that another host told of."""
        values = {each.name: found[_JSON.get(each.name, each.name)] for each in fields(cls)}
        return cls(**{**values, "last_lines": tuple(values["last_lines"])})

    def masked(self, mask: Callable[[str], str]) -> Failure:
        """Return the same without secrets: another host may have known others."""
        return replace(
            self,
            name=mask(self.name),
            message=mask(self.message),
            file=mask(self.file) if self.file else None,
            command=mask(self.command) if self.command else None,
            # Together, for a secret may have lines.
            last_lines=tuple(mask("\n".join(self.last_lines)).split("\n"))
            if self.last_lines
            else (),
        )

    def document(self) -> str:
        """Return the JSON of ``output/data/failure.json``."""
        return json.dumps(self.as_dict(), indent=1)


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: max(0, length - 3)] + "..."


def _fitting(lines: list[str], room: int) -> str:
    """Return the end of ``lines``, and what led to it where it is a traceback with causes."""
    whole = "\n".join(lines)
    if len(whole) <= room:
        return whole
    from sm_runtime.job import diagnosis  # with many expressions to compile, and only for few jobs

    causes = "".join(
        f"{_clip(line, room // 6)}\n" for line in diagnosis.causes(lines)[-2 * _CAUSES :]
    )
    tail = "\n".join(_clip(line, _LINE_CHARACTERS) for line in lines) if len(lines) > 1 else whole
    room -= len(causes)
    if len(tail) > room:
        cut = tail[len(tail) - room :]
        tail = cut.partition("\n")[2] or cut
    return causes + tail


def signal_name(number: int) -> str:
    """Return the name of a signal: ``SIGKILL``, or ``SIG37`` where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def of_error(error: JobError, host: str | None, mask: Callable[[str], str]) -> Failure:
    """Return the failure that an error of the runtime itself is.

    Masked here already: what is cut off a secret would not be known for one later.
    """
    problems = [mask(problem) for problem in getattr(error, "problems", ())]
    return Failure(
        name=type(error).__name__,
        message=mask(str(error)),
        phase=error.phase,
        status=error.status,
        host=host,
        last_lines=tuple(problems) if len(problems) > 1 else (),
    )


def of_script(ended: Ended, command: Command, host: str, mask: Callable[[str], str]) -> Failure:
    """Return why the script of ``command`` failed; files are named relative to its folder."""
    lines = _lines(ended.tail, mask)
    is_stderr = any(map(str.strip, lines))
    if not is_stderr:  # a shell script may have written its complaint to standard output
        lines = _lines(ended.stdout_tail, mask)
    name, message, frames, last = _reason(ended, lines, is_stderr=is_stderr)
    file, line = _own_frame(frames, command.cwd)
    return Failure(
        name=name,
        message=_clip(message, _MESSAGE_CHARACTERS),
        phase="train",
        status=ended.status,
        file=file,
        line=line,
        signal=signal_name(ended.signal) if ended.signal else None,
        oom=bool(ended.oom_kills) and ended.status == 137,
        host=host,
        last_lines=tuple(last),
        # Word by word: the quotes that a shell needs would hide a secret from the mask.
        command=shlex.join(map(mask, command.argv)),
    )


def _lines(output: bytes, mask: Callable[[str], str]) -> list[str]:
    text = output.decode("utf-8", "backslashreplace")
    # Together, for a secret may have lines.
    return mask("\n".join(characters.lines(text))).split("\n")


def _reason(
    ended: Ended, lines: list[str], *, is_stderr: bool
) -> tuple[str, str, Sequence[tuple[str, int]], Sequence[str]]:
    """Return the class, the message, the frames and the last lines of a failure."""
    from sm_runtime.job import diagnosis

    how, last = _how(ended), lines[-LAST_LINES:]
    name = "ExecuteUserScriptError"
    if ended.stopped_by:
        return name, how, (), last
    crashed = ended.signal in _CRASHES
    if (crashed or not ended.signal) and (raised := diagnosis.raised(lines)):
        message = f"{raised.message}; then {how}".lstrip("; ") if crashed else raised.message
        if _BUS.search(message):  # a child's end, say
            message += f"; {_bus_error(ended)}"
        message += diagnosis.missing_module(raised.name, raised.message)
        return raised.name, message, raised.frames, raised.lines
    by_signal = bool(ended.signal)
    if by_signal:
        found = diagnosis.of_signal(lines) if ended.signal != signal.SIGKILL else None
    else:
        found = diagnosis.of_exit(lines, ended.status, is_stderr=is_stderr)
    if found is None:
        return name, how, (), last
    named = by_signal or _as_after(ended.status)
    return name, f"{how}: {found.text}" if named else found.text, found.frames, last


def _how(ended: Ended) -> str:
    """Say in words how a script ended."""
    if ended.stopped_by:
        manner = "killed when the grace was over" if ended.killed else "ended"
        return f"stopped by {ended.stopped_by}, {manner}"
    if ended.oom_kills and ended.status == 137:
        limit = ended.memory_limit_bytes
        of = f": limit {limit / 2**20:.0f} MiB" if limit else ""
        return f"OOM-killed{of}"
    if ended.signal == signal.SIGKILL:
        return "killed by SIGKILL (not OOM)"
    after = _as_after(ended.status)
    if ended.signal:
        how = f"killed by {signal_name(ended.signal)} (signal {ended.signal})"
    else:
        how = f"the script ended with exit code {ended.status}"
        how += f", as after {after}" if after else ""
    return f"{how}: {_bus_error(ended)}" if ended.status == 128 + signal.SIGBUS else how


def _as_after(status: int) -> str:
    """Return the signal that a shell means by ``status``; empty where it means none."""
    return signal_name(status - 128) if status - 128 in set(signal.Signals) else ""


def _bus_error(ended: Ended) -> str:
    """Say what is the usual cause of SIGBUS: memory of a file for which there is no room."""
    size, free = ended.shared_memory_bytes, ended.shared_memory_free_bytes
    limit = "" if size is None else f" (limit {size / 2**20:.0f} MiB)"
    # What the process had mapped and unlinked is free again.
    is_full = size is not None and free is not None and free < size / 20
    return f"{'' if is_full else 'as when '}/dev/shm is full{limit}, see docker run --shm-size"


def _own_frame(frames: Sequence[tuple[str, int]], code: str) -> tuple[str | None, int | None]:
    """Return the innermost frame in the user's code, else the innermost of all."""
    inside = code.rstrip("/") + "/"
    for file, line in reversed(frames):
        if file.startswith(inside):
            return file[len(inside) :], line
        if not file.startswith(("/", "<")):  # relative: to the code folder, where it was started
            return file.removeprefix("./"), line
    return frames[-1] if frames else (None, None)

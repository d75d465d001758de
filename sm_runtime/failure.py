"""Says why a script failed, from how it ended and what it wrote last; a pure function of both."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Mapping

from sm_runtime.errors import JobError
from sm_runtime.frozen import dataclass
from sm_runtime.model import Ended, Json

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is costly to import
if TYPE_CHECKING:
    from typing import TypeAlias

HEADLINE_CHARACTERS = 200
"""The most that the first line takes."""
TEXT_CHARACTERS = 1024
"""The most that a platform reads of ``output/failure``."""
LAST_LINES = 20

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)', re.MULTILINE)
_RAISED = re.compile(r"^(?P<name>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$")
_START = "Traceback (most recent call last):"
_GROUP_MARGIN = re.compile(r"^ *[+|] ?")
_NOISE = (
    "Exception ignored in",
    "Exception in thread",
    "Task exception was never retrieved",
    "future: ",
    "Error in atexit",
)
if TYPE_CHECKING:
    _Raised: TypeAlias = tuple[str, str, list[tuple[str, int]], list[str]]
    # class, message, frames (the outermost first), lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a job failed."""

    name: str
    """The class of the exception, or of our own error."""
    message: str
    phase: str
    """``config``, ``download``, ``code``, ``install``, ``launch``, ``train`` or ``upload``."""
    status: int
    file: str | None = None
    line: int | None = None
    signal: str | None = None
    oom: bool = False
    host: str | None = None
    rank: int | None = None
    last_lines: tuple[str, ...] = ()

    def headline(self) -> str:
        """Return ``Class: message (file:line) [host, exit N]``, 200 characters at most."""
        place = f" ({self.file}:{self.line})" if self.file else ""
        who = [f"rank {self.rank}"] if self.rank is not None else []
        who += [self.host] if self.host else []
        end = _clip(place, 80) + f" [{', '.join([*who, f'exit {self.status}'])}]"[-80:]
        name = _clip(self.name, 60)
        room = HEADLINE_CHARACTERS - len(end) - len(name) - 2
        message = _clip(" ".join(self.message.split()), max(4, room))
        return (f"{name}: {message}{end}" if message else f"{name}{end}")[:HEADLINE_CHARACTERS]

    def text(self) -> str:
        """Return the text of ``output/failure``: the headline, then the end of the traceback."""
        head = f"{self.headline()}\nphase: {self.phase}\n"
        whole = "" if " ".join(self.message.split()) in head else self.message
        tail = "\n".join(self.last_lines) or whole
        room = TEXT_CHARACTERS - len(head)
        if len(tail) > room:
            cut = tail[len(tail) - room :]
            tail = cut.partition("\n")[2] or cut
        return head + tail

    def as_dict(self) -> dict[str, Json]:
        """Return what ``failure.json`` holds; ``from_dict`` is the way back."""
        return {
            "class": self.name,
            "message": self.message,
            "phase": self.phase,
            "exit": self.status,
            "signal": self.signal,
            "file": self.file,
            "line": self.line,
            "rank": self.rank,
            "host": self.host,
            "oom": self.oom,
            "last_lines": list(self.last_lines),
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Json]) -> Failure:
        """Return the failure that another host told of."""
        return cls(
            name=found["class"],
            message=found["message"],
            phase=found["phase"],
            status=found["exit"],
            signal=found["signal"],
            file=found["file"],
            line=found["line"],
            rank=found["rank"],
            host=found["host"],
            oom=found["oom"],
            last_lines=tuple(found["last_lines"]),
        )

    def document(self) -> str:
        """Return the JSON of ``output/data/failure.json``."""
        return json.dumps(self.as_dict(), indent=1)


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


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


def of_script(ended: Ended, code: str, host: str, mask: Callable[[str], str]) -> Failure:
    """Return why the script failed; ``code`` is the folder that its files are named relative to."""
    text = mask(ended.tail.decode("utf-8", "backslashreplace"))
    if not text.strip():  # a shell script may have written its complaint to standard output
        text = mask(ended.stdout_tail.decode("utf-8", "backslashreplace"))
    lines = [line.rpartition("\r")[2] for line in text.splitlines()]
    name, message, file, line = "ExecuteUserScriptError", _how(ended), None, None
    raised = None if ended.signal or ended.stopped_by else _last_traceback(lines)
    if raised:
        name, message, frames, last = raised
        file, number = _own_frame(frames, code)
        line, lines = number, last
    return Failure(
        name=name,
        message=message,
        phase="train",
        status=ended.status,
        file=file,
        line=line,
        signal=signal_name(ended.signal) if ended.signal else None,
        oom=bool(ended.oom_kills) and ended.status == 137,
        host=host,
        last_lines=tuple(lines if raised else lines[-LAST_LINES:]),
    )


def _how(ended: Ended) -> str:
    """Say in words how a script without a traceback ended."""
    if ended.stopped_by:
        manner = "killed when the grace was over" if ended.killed else "ended"
        return f"stopped by {ended.stopped_by}, {manner}"
    if ended.oom_kills and ended.status == 137:
        limit = ended.memory_limit_bytes
        of = f": limit {limit / 2**20:.0f} MiB" if limit else ""
        return f"OOM-killed{of}"
    if ended.signal == signal.SIGKILL:
        return "killed by SIGKILL (not OOM)"
    if ended.signal:
        return f"killed by {signal_name(ended.signal)} (signal {ended.signal})"
    if ended.status > 128 and ended.status - 128 in set(signal.Signals):
        name = signal_name(ended.status - 128)
        return f"the script ended with exit code {ended.status}, as after {name}"
    return f"the script ended with exit code {ended.status}"


def _last_traceback(lines: list[str]) -> _Raised | None:
    """Return the last traceback that may have ended the script.

    Not those of destructors, threads and forgotten tasks, which end nothing, and not one that much
    other output follows: it was handled.
    """
    end = len(lines)
    for start in range(len(lines) - 1, -1, -1):
        if not _is_start(lines[start]):
            continue
        found = _traceback(lines[start:end])
        if found and not _is_noise(lines[:start]):
            after = [line for line in lines[start + len(found[3]) : end] if line.strip()]
            return None if len(after) > LAST_LINES else (*found[:3], lines[start:end])
        end = start
    return _syntax_error(lines)


def _is_start(line: str) -> bool:
    return line.lstrip(" +").removeprefix("Exception Group ") == _START


def _is_noise(before: list[str]) -> bool:
    """Whether the line before a traceback says that it did not end the script."""
    last = next((line for line in reversed(before) if line.strip()), "")
    return last.startswith(_NOISE)


def _traceback(block: list[str]) -> _Raised | None:
    """Return what the traceback at the start of ``block`` says; its lines end with the message."""
    body = [_GROUP_MARGIN.sub("", line) for line in block] if "+" in block[0] else block
    margin = len(body[0]) - len(body[0].lstrip())
    for i, line in enumerate(body[1:], 1):
        match = _RAISED.match(line[margin:])
        if match:
            frames = [_FRAME.match(frame) for frame in body[:i]]
            where = [(frame["file"], int(frame["line"])) for frame in frames if frame]
            name = match["name"].rpartition(".")[2]
            return name, match["message"] or "", where, block[: i + 1]
    return None


def _syntax_error(lines: list[str]) -> _Raised | None:
    """Return the same for a script that did not compile: Python prints no ``Traceback`` then."""
    for i in range(len(lines) - 1, -1, -1):
        match = _RAISED.match(lines[i])
        if match and match["name"] in ("SyntaxError", "IndentationError", "TabError"):
            for j in range(i - 1, max(-1, i - 6), -1):
                if frame := _FRAME.match(lines[j]):
                    where = [(frame["file"], int(frame["line"]))]
                    return match["name"], match["message"] or "", where, lines[j : i + 1]
    return None


def _own_frame(frames: list[tuple[str, int]], code: str) -> tuple[str | None, int | None]:
    """Return the innermost frame in the user's code, else the innermost of all."""
    inside = code.rstrip("/") + "/"
    for file, line in reversed(frames):
        if file.startswith(inside):
            return file[len(inside) :], line
        if not file.startswith(("/", "<")):  # relative: to the code folder, where it was started
            return file.removeprefix("./"), line
    return frames[-1] if frames else (None, None)

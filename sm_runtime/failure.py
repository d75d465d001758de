"""Says why a script failed, from how it ended and what it wrote last; a pure function of both."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable

from sm_runtime.errors import JobError
from sm_runtime.frozen import dataclass
from sm_runtime.model import Ended

HEADLINE_CHARACTERS = 200
"""The most that the first line takes."""
TEXT_CHARACTERS = 1024
"""The most that a platform reads of ``output/failure``."""
LAST_LINES = 20

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)', re.MULTILINE)
_RAISED = re.compile(r"^(?P<name>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$")
_START = "Traceback (most recent call last):"


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
        end = f"{place} [{', '.join([*who, f'exit {self.status}'])}]"
        room = max(20, HEADLINE_CHARACTERS - len(end) - len(self.name) - 2)
        message = " ".join(self.message.split())
        if len(message) > room:
            message = message[: room - 3] + "..."
        return f"{self.name}: {message}{end}" if message else f"{self.name}{end}"

    def text(self) -> str:
        """Return the text of ``output/failure``: the headline, then the end of the traceback."""
        head = f"{self.headline()}\nphase: {self.phase}\n"
        whole = "" if " ".join(self.message.split()) in head else self.message
        tail = "\n".join(self.last_lines) or whole
        room = TEXT_CHARACTERS - len(head)
        if len(tail) > room:
            cut = tail[-room:]
            tail = cut.partition("\n")[2] or cut
        return head + tail

    def document(self) -> str:
        """Return the JSON of ``output/data/failure.json``."""
        return json.dumps(
            {
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
            },
            indent=1,
        )


def of_error(error: JobError, host: str | None) -> Failure:
    """Return the failure that an error of the runtime itself is."""
    problems = getattr(error, "problems", ())
    return Failure(
        name=type(error).__name__,
        message=str(error),
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
        signal=signal.Signals(ended.signal).name if ended.signal else None,
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
        return f"killed by {signal.Signals(ended.signal).name} (signal {ended.signal})"
    if ended.status > 128 and ended.status - 128 in set(signal.Signals):
        name = signal.Signals(ended.status - 128).name
        return f"the script ended with exit code {ended.status}, as after {name}"
    return f"the script ended with exit code {ended.status}"


def _last_traceback(
    lines: list[str],
) -> tuple[str, str, list[tuple[str, int]], list[str]] | None:
    """Return class, message, frames (outermost first) and lines of the last traceback."""
    starts = [i for i, line in enumerate(lines) if line.strip(" |+") == _START]
    if not starts:
        return _syntax_error(lines)
    block = lines[starts[-1] :]
    margin = len(block[0]) - len(block[0].lstrip(" |+"))
    for i, line in enumerate(block[1:], 1):
        body = line[margin:]
        match = _RAISED.match(body)
        if match and not body.startswith(" "):
            frames = [
                (m["file"], int(m["line"]))
                for m in (_FRAME.match(f[margin:]) for f in block[:i])
                if m
            ]
            name = match["name"].rpartition(".")[2]
            return name, match["message"] or "", frames, block
    return None


def _syntax_error(lines: list[str]) -> tuple[str, str, list[tuple[str, int]], list[str]] | None:
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

"""Finds why a process ended in the last lines that it wrote: pure functions of these.

It is the exception of a traceback, or what else ends a process: a library that aborts, a shell that
finds no command, a parser of arguments, ``sys.exit("reason")``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from sm_runtime.job.secrets import MASK

LAST_LINES = 20
"""A traceback that so many other lines follow did not end the process."""

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)')
_RAISED = re.compile(
    r"^(?P<name>[^\W\d][\w.]*(?:\.<locals>[\w.]+)*(?:\(\w+\))?)"
    r"(?:: ?(?P<message>.*))?$"
)
_START = "Traceback (most recent call last):"
_CHAINED = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
_GROUP_MARGIN = re.compile(r"^ *[+|] ?")
_MEMBER = re.compile(r"^ *\+[-+]+ \d+ -+$")
_MEMBER_LINE = re.compile(r"^ *\| (?=\S)(.*)$")
_TAGGED = re.compile(
    r"^(\[[^\]\s]{1,80}\](?:<std(?:out|err)>)?:? ?|\([^()]{0,80}\bpid=[^()]{0,80}\) )Traceback \("
)
"""A traceback behind the name of a rank, as PyTorch, Open MPI and Ray write it."""
_NOISE = (
    "Exception ignored in",
    "Exception in thread",
    "Task exception was never retrieved",
    "future: ",
    "Error in atexit",
)
_WRAPPERS = frozenset({"CalledProcessError", "ChildFailedError", "ExecuteUserScriptError"})
"""What a parent raises because its child has failed, whose own traceback says why."""
_EMPTY = (
    re.compile(r".*:$"),
    re.compile(r"\w+ \d+$"),  # the toolkit's `ExitCode 1`
    re.compile(r"\w+[:=]? ?(['\"])\1$"),
    re.compile(r"Node: ?'[^']*'$"),  # TensorFlow's, before the reason
    re.compile(r"\d+ validation errors? for \S+$"),  # pydantic's
)
"""Lines of a message that announce what the next one says."""
_HEADINGS = 40
"""How many characters of these the first line that says something is given."""

_MISSING = re.compile(r"No module named '([A-Za-z0-9_]+)")
_IN_AWS_IMAGES = {
    "awscli": "awscli",
    "bokeh": "bokeh",
    "cv2": "opencv-python-headless",
    "imageio": "imageio",
    "IPython": "ipython",
    "numba": "numba",
    "pandas": "pandas",
    "plotly": "plotly",
    "sagemaker": "sagemaker<3",
    "seaborn": "seaborn",
    "shap": "shap",
    "smexperiments": "sagemaker-experiments",
    "tensorflow_datasets": "tensorflow-datasets",
    "tensorflow_io": "tensorflow-io==0.36.0",
    "yaml": "PyYAML",
}
"""By module, the line of ``requirements.txt`` for what AWS images have and ours lack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """An exception that ended a process."""

    name: str
    """Its class, without the module."""
    message: str
    frames: tuple[tuple[str, int], ...] = ()
    """File and line, the outermost first."""
    lines: tuple[str, ...] = ()
    """Its traceback with those that led to it, and what follows."""


def raised(lines: list[str]) -> Raised | None:
    """Return the exception that may have ended the process that wrote ``lines`` last.

    Not those of destructors, threads and forgotten tasks, which end nothing, and not one that much
    other output follows: it was handled.
    """
    found = _last_traceback(lines) or _syntax_error(lines)
    if found is None or found.name in _WRAPPERS:
        tagged = filter(None, map(_TAGGED.match, lines))
        for tag in dict.fromkeys(match[1] for match in tagged):
            own = [_untagged(line, tag) for line in lines if line.startswith(tag.rstrip())]
            if inner := _last_traceback(own):
                return inner
    return found


def summary(message: Iterable[str], name: str = "") -> str:
    """Return the first lines of a message that have information, on one line.

    What only announces them is left out where it is long; so is the ``name`` of the exception.
    """
    parts: list[str] = []
    for line in _without_tracebacks(message):
        text = " ".join(line.split())
        if not has_words(text) or text.rstrip(":") == name:
            continue
        parts.append(text)
        if _says_something(text):
            while len(parts) > 1 and sum(map(len, parts[:-1])) > _HEADINGS:
                del parts[-2]
            break
    return " ".join(parts)


def has_words(text: str) -> bool:
    """Return whether a line is no rule or frame: it has words, or what masks a secret."""
    return any(map(str.isalnum, text)) or MASK in text.split()


def causes(lines: Iterable[str]) -> list[str]:
    """Return the exceptions that led to the last one of a traceback, a line each.

    Each is followed by Python's own sentence about how it led to the next one.
    """
    found: list[str] = []
    section: list[str] = []
    for line in lines:
        if line not in _CHAINED:
            section.append(line)
            continue
        starts = [i for i, part in enumerate(section) if _is_start(part)]
        if starts and (cause := _traceback(section[starts[-1] :])):
            message = cause.raised.message
            found += [f"{cause.raised.name}: {message}" if message else cause.raised.name, line]
        section = []
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """A traceback in the lines of a process."""

    raised: Raised
    length: int
    """How many lines it has, the one that names the exception included."""
    opens: bool
    """Whether that line only announces the message."""


def _last_traceback(lines: list[str]) -> Raised | None:
    starts = [i for i, line in enumerate(lines) if _is_start(line)]
    end = len(lines)
    for position in range(len(starts) - 1, -1, -1):
        start = starts[position]
        before = _line_before(lines, start)
        # One that begins in the message of another has to look the more like one.
        strict = position > 0 and before not in _CHAINED
        block = _traceback(lines[start:end], strict=strict)
        if block is None:
            continue
        if before.startswith(_NOISE):
            end = start
            continue
        after = [line for line in lines[start + block.length : end] if line.strip()]
        if len(after) > LAST_LINES and not block.opens:
            return None
        if block.raised.name in _WRAPPERS and before not in _CHAINED:
            inner = _last_traceback(lines[:start])
            if inner:
                return replace(inner, lines=(*inner.lines, *lines[start:end]))
        return _with_causes(lines, starts[:position], start, end, block.raised)
    return None


def _with_causes(
    lines: list[str], starts: list[int], start: int, end: int, raised: Raised
) -> Raised:
    """Return the exception with the lines of those that led to it."""
    first, frames = start, raised.frames
    for earlier in reversed(starts):
        if _line_before(lines, first) not in _CHAINED:
            break
        cause = _traceback(lines[earlier:first])
        if cause is None:
            continue
        same = (cause.raised.name, cause.raised.message) == (raised.name, raised.message)
        if same and first == start:  # another process raised it, and this one once more
            frames = cause.raised.frames
        first = earlier
    return replace(raised, frames=frames, lines=tuple(lines[first:end]))


def _is_start(line: str) -> bool:
    text = line.lstrip(" +").removeprefix("Exception Group ")
    return text.removeprefix("Original ") == _START  # PyTorch's, of a worker


def _line_before(lines: list[str], index: int) -> str:
    """Return the last line before ``index`` that is not blank."""
    return next((lines[i] for i in range(index - 1, -1, -1) if lines[i].strip()), "")


def _untagged(line: str, tag: str) -> str:
    return line.removeprefix(tag) if line.startswith(tag) else ""


def _traceback(block: list[str], *, strict: bool = False) -> _Block | None:
    """Return what the traceback at the start of ``block`` says."""
    is_group = "+" in block[0]
    body = [_GROUP_MARGIN.sub("", line) for line in block] if is_group else block
    margin = len(body[0]) - len(body[0].lstrip())
    frames: list[tuple[str, int]] = []
    length = 1
    for line in body[1:]:
        length += 1
        if frame := _FRAME.match(line):
            frames.append((frame["file"], int(frame["line"])))
        elif match := _RAISED.match(line[margin:]):
            break
    else:
        return None
    name = match["name"].rpartition(".")[2]
    if not frames or (strict and "." not in match["name"] and not name[0].isupper()):
        return None
    opening, message = match["message"], ""
    if opening is not None:  # without a colon there is no message: what follows are notes
        message = summary((opening, *_message_rest(body[length:])), name)
    if is_group and (members := _members(block)):
        message = f"{message}: {'; '.join(members)}"
    raised = Raised(name=name, message=message, frames=tuple(frames))
    opens = opening is not None and not _says_something(" ".join(opening.split()))
    return _Block(raised=raised, length=length, opens=opens)


def _message_rest(lines: list[str]) -> Iterator[str]:
    """Yield the lines that may belong to a message, after its first one."""
    for line in lines:
        if line in _CHAINED or line.startswith(_NOISE) or _MEMBER.match(line):
            return
        yield line


def _members(block: list[str]) -> list[str]:
    """Return the exceptions of a group, a line each."""
    found: list[str] = []
    waiting = False
    for line in block:
        if _MEMBER.match(line):
            waiting = True
        elif waiting and (inner := _MEMBER_LINE.match(line)) and _RAISED.match(inner[1]):
            found.append(inner[1])
            waiting = False
    return found


def _without_tracebacks(lines: Iterable[str]) -> Iterator[str]:
    depth: int | None = None
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.rstrip().endswith("(most recent call last):"):
            depth = indent
        elif depth is None or (line.strip() and indent <= depth):
            depth = None
            yield line


def _says_something(text: str) -> bool:
    return bool(text) and not any(empty.match(text) for empty in _EMPTY)


def _syntax_error(lines: list[str]) -> Raised | None:
    """Return the same for a script that did not compile: Python prints no ``Traceback`` then."""
    for i in range(len(lines) - 1, -1, -1):
        match = _RAISED.match(lines[i])
        if match and match["name"] in ("SyntaxError", "IndentationError", "TabError"):
            for j in range(i - 1, max(-1, i - 6), -1):
                if frame := _FRAME.match(lines[j]):
                    return Raised(
                        name=match["name"],
                        message=match["message"] or "",
                        frames=((frame["file"], int(frame["line"])),),
                        lines=tuple(lines[j : i + 1]),
                    )
    return None


LOOKED_AT = 40
"""How many of the last lines may say why a process ended."""
_LONGEST = 2000
"""How much of a line is looked at."""

_ABORTS = (
    # C++: the class of the exception, and in the next line its message.
    re.compile(r"terminate called after throwing an instance of '(?P<text>[^']+)'"),
    re.compile(r"(?P<text>terminate called .+)"),
    # The fatal level of Google's logging: F, the date and the place in the source.
    re.compile(r"(?:\S+ \S+: )?F(?: |\d{4} )\S.*?[\w/.-]+:\d+\] (?P<text>.+)"),
    re.compile(r"(?P<text>.*\bCheck failed: .+)"),
    re.compile(r"(?P<text>.+: Assertion `.+' failed\.?)"),
    # glibc's malloc and stack protector.
    re.compile(
        r"(?P<text>(?:free|malloc|realloc|calloc|munmap_chunk)\(\): .+|malloc_consolidate.+"
        r"|double free or corruption .+|corrupted (?:size|double-linked).+|\*\*\* .+ \*\*\*.*)"
    ),
    re.compile(r"(?P<text>Fatal Python error: .+)"),
    re.compile(r"(?P<text>thread '.*' panicked at .+)"),
    re.compile(r"(?P<text>.*\b(?:NCCL (?:WARN|error)|CUDA (?:error|failure)|CUDA_ERROR_).*)"),
    re.compile(
        r"(?:\S+: line \d+: +)?(?P<text>(?:\d+ +)?(?:Segmentation fault|Bus error|Aborted|Killed"
        r"|Illegal instruction|Floating point exception)\b.*)"
    ),
)
"""What is written when a signal ends a process, the most telling first."""
_WHAT = re.compile(r"\s*what\(\): +(?P<text>.*)")
_DUMPED = re.compile(r'  File "(?P<file>[^"]+)", line (?P<line>\d+) in ')
"""A frame of the stacks that Python's ``faulthandler`` writes, the innermost first."""
_SHELL = re.compile(
    r"(?:(?P<bash>[^\s:]+): line (?P<n>\d+)|(?P<dash>\.?/[^\s:]+|[^\s:]+\.sh): (?P<m>\d+))"
    r": (?P<text>\S.*)"
)
_SHELLS = frozenset({"sh", "bash", "dash", "ksh", "zsh"})
_STAMP = r"[\s\d:.,/TZ+\[\]()|-]{0,60}(?:[\w.]+[ :|-]{1,3})?"
"""What may come before the level of a log line."""
_ERRORS = (
    re.compile(r"(?:[^\s:]+: )?(?:error|fatal|critical)(?: in .+)?: ?\S", re.IGNORECASE),
    re.compile(
        r"[^\s:]+: (?:.+: )?(?:cannot|can't|could not|couldn't|failed|no such|not found|permission"
        r" denied|invalid|unable|unrecognized|unknown|missing|refused|no module named)\b",
        re.IGNORECASE,
    ),
    re.compile(_STAMP + r"\[?(?:ERROR|CRITICAL|FATAL)\b"),
)
"""A last line that is an error, whatever the exit status: of a parser of arguments, a command of
Unix, a log."""
_NO_REASON = (
    re.compile(r"(?:.+:\d+: )?\w*Warning: "),
    re.compile(r"\s*warnings\.warn\("),
    re.compile(_STAMP + r"\[?(?:DEBUG|INFO|WARN(?:ING)?)\b"),
    re.compile(r"(?:\S+ \S+: )?[IW](?: |\d{4} )\S.*:\d+\] "),  # Google's logging
    re.compile(r"To enable (?:the following instructions|them in other operations)"),
    re.compile(r"wandb: (?!ERROR)"),
    re.compile(r".*\d%\|.*\||.*\d+/\d+ [\[━]"),  # a bar of tqdm's or Keras's
)
"""A last line that is none, even with the exit status of ``sys.exit("reason")``."""
_TRAILERS = (
    "Execution halted",
    "Pass --help",
    "Set the environment variable HYDRA_FULL_ERROR",
    "Aborted!",
    "Try '",
)
"""What follows a reason: of R, absl, Hydra and click."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the lines of a process say about its end."""

    text: str
    frames: tuple[tuple[str, int], ...] = ()
    """The places in source files that were named with it, the outermost first."""


def of_signal(lines: Sequence[str]) -> Finding | None:
    """Return what a process wrote that a signal has ended."""
    last = [line[:_LONGEST] for line in lines[-LOOKED_AT:]]
    for pattern in _ABORTS:
        for i, line in enumerate(last):
            if found := pattern.match(line):
                text = " ".join(found["text"].split())
                what = next(filter(None, map(_WHAT.match, last[i + 1 : i + 4])), None)
                text = f"{text}: {what['text']}" if what else text
                return Finding(text=text, frames=_dumped(lines))
    return None


def of_exit(lines: Sequence[str], status: int, *, is_stderr: bool) -> Finding | None:
    """Return why a process ended with ``status``, by what it wrote.

    An exit status of 1 without an exception is that of ``sys.exit("reason")``, and parsers of
    arguments print the usage: then the last line of standard error is the reason, if it is no
    warning nor progress.
    """
    last = list(_meaningful(lines[-LOOKED_AT:]))
    if not last:
        return None
    if shell := _of_shell(last):
        return shell
    if status > 128 and (found := of_signal(lines)):
        return found
    if fatal := next((line for line in last if line.startswith("Fatal Python error: ")), None):
        return Finding(text=fatal)
    if any(other.match(last[-1]) for other in _NO_REASON):
        return None
    is_reason = status == 1 or any(line.lower().startswith("usage: ") for line in last)
    if (is_reason and is_stderr) or any(error.match(last[-1]) for error in _ERRORS):
        return Finding(text=_with_heading(last))
    return None


def _of_shell(lines: list[str]) -> Finding | None:
    found = [each for line in lines[-2:] if (each := _SHELL.match(line))]
    if not found or not _SHELL.match(lines[-1]):
        return None
    # A syntax error has two lines: what it is, and the line that has it.
    number = {int(each["n"] or each["m"]) for each in found}
    error = found[0] if len(number) == 1 else found[-1]
    file, line = error["bash"] or error["dash"], int(error["n"] or error["m"])
    frames = () if file.rpartition("/")[2] in _SHELLS else ((file, line),)
    return Finding(text=error["text"], frames=frames)


def _meaningful(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        text = line[:_LONGEST].rstrip()
        if text.startswith(("│", "║")):  # a box of rich's
            text = text.strip("│║ ")
        if has_words(text) and not text.startswith(_TRAILERS):
            yield text


def _with_heading(lines: list[str]) -> str:
    """Return the last line, with those before it that it continues."""
    first = len(lines) - 1
    while first > max(0, len(lines) - 4) and (
        lines[first][:1].isspace() or lines[first - 1].endswith(":")
    ):
        first -= 1
    return " ".join(" ".join(lines[first:]).split())


def _dumped(lines: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Return the frames of the thread that Python's ``faulthandler`` says has failed."""
    frames: list[tuple[str, int]] = []
    start = next((i for i, line in enumerate(lines) if line.startswith("Current thread 0x")), None)
    for line in lines[start + 1 :] if start is not None else ():
        found = _DUMPED.match(line)
        if not found:
            break
        frames.append((found["file"], int(found["line"])))
    return tuple(reversed(frames))


def missing_module(name: str, message: str) -> str:
    """Return what to do about a module that AWS's images have; empty for anything else."""
    found = _MISSING.search(message) if name == "ModuleNotFoundError" else None
    line = _IN_AWS_IMAGES.get(found[1]) if found else None
    return f"; AWS's images have it: add {line} to requirements.txt" if line else ""

"""Finds why a process ended that raised no exception: pure functions of the last lines it wrote.

What ended it may be a library that aborts, a shell that finds no command, a parser of arguments, or
``sys.exit("reason")``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sm_runtime.job.reason import has_words

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

"""Says in one sentence why pip failed, in pip's own words."""

from __future__ import annotations

import re

_LONGEST = 600
_ERROR = re.compile(r"^\s*(?:ERROR|error):\s*(\S.*)$", re.M)
_CAUSE = re.compile(r"The conflict is caused by:\n((?:[ \t]+\S.*\n?)+)")
_BROKEN = re.compile(r"after connection broken by '.*(\[Errno -?\d+\] [^'\")\]]+|timed out)")
_INDEXES = re.compile(r"Looking in indexes: (\S+?),?(?:\s|$)")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_NO_HELP = ("ResolutionImpossible", "No matching distribution found")
"""What follows a line that says more."""


def explain(status: int, output: str, name: str) -> str:
    """Return the sentence for a pip that ended with ``status`` and printed ``output``.

    ``name`` is what was installed.
    """
    output = _CREDENTIALS.sub("***@", output)
    errors = [match.strip() for match in _ERROR.findall(output)]
    if status > 128 and not errors:
        return f"{name}: pip was ended by signal {status - 128}"
    said = [text for text in errors if not text.startswith(_NO_HELP)] or errors
    why = "; ".join(dict.fromkeys(said[-3:])) or _last_line(output)
    hint = ""
    if broken := _BROKEN.search(output):
        index = _INDEXES.search(output)
        where = f" {index[1]}" if index else ""
        why = f"the package index{where} cannot be reached: {broken[1]}; {why}"
    elif cause := _CAUSE.search(output):
        why += " " + "; ".join(line.strip() for line in cause[1].splitlines())
        if "(constraint)" in why:
            hint = "; SM_RUNTIME_ALLOW_FRAMEWORK_CHANGE=1 lets an installed framework be replaced"
    text = f"{name}: pip ended with status {status}: {why}"
    return (text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "...") + hint


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing"

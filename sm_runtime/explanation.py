"""Says in one sentence why pip failed, from what it printed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sm_runtime.index import default

if TYPE_CHECKING:
    from sm_runtime.requirements import Line

_LONGEST = 600
_BROKEN = re.compile(
    r"after connection broken by '(?P<why>.*)':|Max retries exceeded|Could not fetch URL"
)
_HOST = re.compile(
    r"host='(?P<a>[^']+)'|Connection to (?P<b>\S+) timed out|Failed to resolve '(?P<c>[^']+)'"
)
_INDEXES = re.compile(r"Looking in indexes: (\S+?),?(?:\s|$)")
_NO_MATCH = re.compile(r"No matching distribution found for (.+?)(?: \(from .*\))?\s*$", re.M)
_VERSIONS = re.compile(r"\(from versions: (?!none)([^)]+)\)")
_CAUSE = re.compile(r"The conflict is caused by:\n((?:[ \t]+\S.*\n?)+)")
_ERROR = re.compile(r"^\s*(?:ERROR|error):\s*(\S.*)$", re.M)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
_REASON = re.compile(r"\[Errno -?\d+\] ([^'\")\]]+)|(timed out)|(refused)")


def explain(status: int, output: str, name: str, lines: Sequence[Line], *, offline: bool) -> str:
    """Return the sentence for a pip that ended with ``status`` and printed ``output``.

    ``name`` is what was installed, ``lines`` what it says; ``offline``: only from ``wheels/``.
    """
    output = _CREDENTIALS.sub("***@", output)
    if status > 128 and not _ERROR.search(output):
        return f"{name}: pip was ended by signal {status - 128}"
    broken = None if offline else _BROKEN.search(output)
    if broken and ("No matching distribution" in output or not _ERROR.search(output)):
        reason = _REASON.search(broken[0])
        why = next(filter(None, reason.groups()), "") if reason else "the connection broke"
        return f"{name}: the package index {_host(output)} cannot be reached: {why}"
    missing = _NO_MATCH.search(output)
    if missing:
        return _no_match(missing[1], output, name, lines, offline)
    cause = _CAUSE.search(output)
    if cause:
        reasons = "; ".join(line.strip() for line in cause[1].splitlines())
        hint = (
            "; set SM_RUNTIME_ALLOW_FRAMEWORK_CHANGE=1 to let the installed framework be replaced"
            if "(constraint)" in reasons
            else ""
        )
        return _short(f"{name}: these exclude each other: {reasons}") + hint
    errors = [match.strip() for match in _ERROR.findall(output)]
    last = "; ".join(dict.fromkeys(errors[-3:])) or _last_line(output)
    return _short(f"{name}: pip ended with status {status}: {last}")


def _no_match(wanted: str, output: str, name: str, lines: Sequence[Line], offline: bool) -> str:
    from sm_runtime.requirements import canonical

    wanted = wanted.strip()
    key = canonical(re.split(r"[^\w.-]", wanted, maxsplit=1)[0])
    asked = (
        line.place
        for line in lines
        if canonical(re.split(r"[^\w.-]", line.text, maxsplit=1)[0]) == key
    )
    place = next(asked, None)
    where = " in wheels/" if offline else ""
    why = ", which a package that it asks for needs" if lines else ", which it needs"
    why = "" if place else why
    versions = _VERSIONS.search(output)
    others = f" (there are {versions[1]})" if versions else ""
    return _short(f"{place or name}: no match for {wanted}{where}{why}{others}")


def _host(output: str) -> str:
    indexes = _INDEXES.search(output)
    found = None if indexes else _HOST.search(output)
    if found:
        return str(found["a"] or found["b"] or found["c"])
    url = indexes[1] if indexes else default() or ""
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2] or "of pip"


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."

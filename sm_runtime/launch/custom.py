"""A launcher of the user's own: a list of words, some of which stand for what the runtime knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sm_runtime.job.errors import ConfigError

if TYPE_CHECKING:
    from sm_runtime.job.model import Entry, Hardware
    from sm_runtime.launch.distribution import Plan

_WORDS = ("args", "command")
"""The placeholders that stand for any number of words, each of them a whole word itself."""
PLACEHOLDERS = (
    "script",
    "module",
    *_WORDS,
    "python",
    "num_gpus",
    "num_cpus",
    "processes_per_host",
    "processes",
    "hosts",
    "num_hosts",
    "host_rank",
    "current_host",
    "leader",
    "port",
)
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def problems(words: tuple[str, ...]) -> list[str]:
    """Return a sentence for each thing that is wrong with the template ``words``."""
    found = []
    if not words[0]:
        found.append("options: launcher: its first word, the program, is empty")
    for word in words:
        for match in _BRACES.finditer(word):
            name = match[1]
            if match[0] in ("{{", "}}"):
                continue
            if name is None:
                found.append(
                    f"options: launcher: {word!r} has a single {match[0]!r}; a brace that is meant"
                    " as such is doubled"
                )
            elif name not in PLACEHOLDERS:
                found.append(
                    f"options: launcher: {{{name}}} in {word!r} is not one of"
                    f" {', '.join(f'{{{known}}}' for known in PLACEHOLDERS)}; a brace that is"
                    " meant as such is doubled"
                )
            elif name in _WORDS and word != match[0]:
                found.append(
                    f"options: launcher: {{{name}}} in {word!r} stands for several words and must"
                    " be a word of its own"
                )
    return found


def command(
    words: tuple[str, ...],
    plan: Plan,
    entry: Entry,
    devices: Hardware,
    python: str,
    *,
    port: int = 7777,
) -> tuple[str, ...]:
    """Return the argument vector that the template ``words`` stands for.

    Raises ConfigError where the template asks for a script and the program is a module, or the
    other way round.
    """
    values = {
        **_of_program(entry.program, python),
        "python": python,
        "num_gpus": str(devices.gpus),
        "num_cpus": str(devices.cpus),
        "processes_per_host": str(plan.processes_per_host),
        "processes": str(plan.processes),
        "hosts": ",".join(plan.hosts),
        "num_hosts": str(len(plan.hosts)),
        "host_rank": str(plan.rank),
        "current_host": plan.host,
        "leader": plan.leader,
        "port": str(port),
    }
    several = {"{args}": entry.arguments, "{command}": entry.argv}
    argv: list[str] = []
    for word in words:
        argv += several[word] if word in several else (_expanded(word, values, entry.program),)
    return tuple(argv)


def _of_program(own: tuple[str, ...], python: str) -> dict[str, str]:
    """Return the placeholder that the program is: a module, or a script of whatever kind."""
    if own[:2] == (python, "-m"):
        return {"module": own[2]}
    if own[:2] == (python, "-c"):
        return {}
    return {"script": own[-1]}


def _expanded(word: str, values: Mapping[str, str], own: tuple[str, ...]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        if name not in values:
            raise ConfigError(
                f"options: launcher: {{{name}}}: the program runs as {' '.join(own)!r}, which is no"
                f" {name}; {{command}} stands for any program"
            )
        return values[name]

    return _BRACES.sub(value, word)

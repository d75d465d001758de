"""MCA parameters of Open MPI: what its files set, and what each host decides for its own processes.

``mpirun`` hands its options on to the processes of all hosts as variables, and those count more
than a file (Open MPI FAQ, "Setting MCA parameters"). So a host takes back what the leader has sent
as a default where its own variables or files set the same, and adds a default that the leader has
left out for the sake of files of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sm_runtime.launch.mpi_options import meant, parse, split

PREFIX = "OMPI_MCA_"
"""What the name of a parameter's variable begins with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostParameters:
    """The parameters that one host decides for Open MPI's processes there."""

    values: Mapping[str, str | None] = field(default_factory=dict)
    """By its variable, what a parameter is here whatever the leader says; None: not set."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """By its variable, what a parameter is here where nothing else sets it."""

    @property
    def variables(self) -> dict[str, str]:
        """The values that are set."""
        return {name: value for name, value in self.values.items() if value is not None}

    def applied(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a process, given the one that Open MPI has made."""
        kept = {name: value for name, value in environ.items() if name not in self.values}
        kept |= self.variables
        about = {meant(name.removeprefix(PREFIX)) for name in kept if name.startswith(PREFIX)}
        added = {
            name: value
            for name, value in self.defaults.items()
            if meant(name.removeprefix(PREFIX)) not in about
        }
        return kept | added

    def without(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        """Return a daemon's arguments, less the parameters that are decided here."""
        kept: list[str] = []
        words = list(argv)
        while words:
            if (
                words[0].lstrip("-") == "mca"
                and len(words) > 2
                and PREFIX + words[1] in self.values
            ):
                del words[:3]
            else:
                kept.append(words.pop(0))
        return tuple(kept)


def file_variables(text: str) -> dict[str, str]:
    """Return the variables that say the same as a parameter file: ``name = value`` in its lines.

    Files of ``-am`` and ``-tune`` may hold options as well: ``-mca name value``.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        line = line.strip()
        name, equals, value = (part.strip() for part in line.partition("="))
        if line.startswith("-"):
            found |= _options(line)
        elif equals and name.replace("_", "").isalnum():
            found[PREFIX + name] = value
    return found


def _options(line: str) -> dict[str, str]:
    try:
        flags = parse(split(line), "")
    except ValueError:
        return {}
    return {PREFIX + f.tokens[1]: f.tokens[2] for f in flags if f.key.startswith("mca ")}

"""The runtime's own settings: ``SM_RUNTIME_<NAME>``, or the hyperparameter
``sagemaker_runtime_<name>``; the variable wins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields

from sm_runtime.contract.reader import Field, Findings, closest, one_of
from sm_runtime.job.model import Json, Options

VARIABLE_PREFIX = "SM_RUNTIME_"
KEY_PREFIX = "sagemaker_runtime_"
_STYLES = ("sagemaker", "flags", "json")
_PORTS = 10
"""How many ports from ``cluster_port`` on the leader tries: see ``cluster/admission.py``."""
_SIGNALS = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2")
_LAST_ID = 2**32 - 2
"""The largest id of a user or a group; the one after it means none to chown(2)."""
_OTHERS = (
    "JOB",
    "HOSTS",
    "NUM_HOSTS",
    "CURRENT_HOST",
    "ENGINE",
    "CLUSTER_SECRET",
    "CLUSTER_SECRET_FILE",
)
"""What other parts of the runtime read from variables, and only from there."""
_INTERNAL = ("COMMAND", "INSIDE")
"""What the runtime tells processes that it starts."""


def read_options(
    environ: Mapping[str, str],
    hyperparameters: Mapping[str, Field],
    arguments: tuple[str, ...] | None,
    findings: Findings,
    stop_seconds: float | None = None,
) -> Options:
    """Return the settings; ``arguments`` are the request's, which a setting replaces.

    ``stop_seconds`` is ``Options.stop_timeout_seconds`` where no setting says it; None: as ever.
    """
    values: dict[str, Json] = {}
    for name, read in OPTIONS.items():
        variable = environ.get(VARIABLE_PREFIX + name.upper(), "")
        if variable.strip():
            at = Field("environment", VARIABLE_PREFIX + name.upper(), variable.strip(), findings)
        else:
            at = hyperparameters.get(KEY_PREFIX + name, Field("", "", None, findings))
        if at.present and at.value != "":
            value = read(at)
            if value is not None:
                values[name] = value
    if arguments is not None:
        values.setdefault("args", arguments)
    if stop_seconds is not None:
        values.setdefault("stop_timeout_seconds", stop_seconds)
    _warn_of_unknown(environ, hyperparameters, findings)
    return Options(**values)


def _warn_of_unknown(
    environ: Mapping[str, str], hyperparameters: Mapping[str, Field], findings: Findings
) -> None:
    variables = [VARIABLE_PREFIX + name for name in (*map(str.upper, OPTIONS), *_OTHERS)]
    internal = [VARIABLE_PREFIX + name for name in _INTERNAL]
    for name in environ:
        if name.startswith(VARIABLE_PREFIX) and name not in (*variables, *internal):
            findings.warnings.append(
                f"environment: {name}: no such setting{closest(name, variables)}"
            )
    keys = [KEY_PREFIX + name for name in OPTIONS]
    for key, at in hyperparameters.items():
        if key.startswith(KEY_PREFIX) and key not in keys:
            findings.warnings.append(f"{at.place}: no such setting{closest(key, keys)}")


def _styles(at: Field) -> frozenset[str] | None:
    if isinstance(at.value, str):
        found = tuple(part.strip() for part in at.value.split(","))
    else:
        found = at.texts()
    wrong = [style for style in found if style not in _STYLES]
    if wrong:
        at.wrong(f"must be a comma list of {one_of(_STYLES)}, {wrong[0]!r} is not one of them")
    return frozenset(found) - {"sagemaker"}


def _arguments(at: Field) -> tuple[str, ...] | None:
    if isinstance(at.value, str):
        try:
            at = at.with_value(json.loads(at.value))
        except (ValueError, RecursionError):
            at.must('a JSON list of strings, like ["--epochs","3"]')
            return None
    return at.texts()


def _flag(at: Field) -> bool:
    if isinstance(at.value, str):
        text = at.value.lower()
        if text in ("1", "yes", "on", "0", "no", "off"):
            return text in ("1", "yes", "on")
        if text in ("true", "false"):
            return text == "true"
    elif at.value in (0, 1) and not isinstance(at.value, bool | float):
        return bool(at.value)
    return at.flag()


def _size(at: Field) -> int | None:
    return at.integer(minimum=1, maximum=2**63 - 1)


def _port(at: Field) -> int | None:
    return at.integer(minimum=1024, maximum=2**16 - _PORTS)


def _a_while(at: Field) -> float | None:
    """Return seconds of which none would mean that all fails at once."""
    return at.seconds(0.1)


def _silence(at: Field) -> float | None:
    """Return seconds, or None where 0 says that no silence is too long."""
    found = at.seconds()
    return _a_while(at) if found else None


def _signal(at: Field) -> str | None:
    name = str(at.value).upper().removeprefix("SIG")
    if name not in _SIGNALS:
        at.must(one_of(_SIGNALS))
        return None
    return name


def _owner(at: Field) -> tuple[int, int] | None:
    user, _, group = str(at.value).partition(":")
    if not all(re.fullmatch("[0-9]{1,10}", number) for number in (user, group)):
        at.must("numbers like 1000:1000")
        return None
    if max(int(user), int(group)) > _LAST_ID:
        at.must(f"numbers of at most {_LAST_ID}")
        return None
    return int(user), int(group)


_READERS: dict[str, Callable[[Field], object]] = {
    "flag": _flag,
    "text": Field.text,
    "words": _arguments,
    "bytes": _size,
    "seconds": Field.seconds,
    "seconds > 0": _a_while,
    "seconds or 0: off": _silence,
    "port": _port,
    "signal": _signal,
    "user:group": _owner,
    "argument styles": _styles,
}
"""How each kind of option is read; a reader returns None for what is wrong."""


def _reader(kind: str) -> Callable[[Field], object]:
    choices = tuple(kind.split(" or "))
    return _READERS.get(kind) or (lambda at: at.text(choices=choices))


OPTIONS = {each.name: _reader(each.metadata["kind"]) for each in fields(Options)}
"""How each field of ``model.Options`` is read."""

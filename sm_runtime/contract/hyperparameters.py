"""Reads hyperparameters: decodes them, and parts the user's from the reserved ones.

Values are JSON texts where an SDK wrote them and plain texts where a person did; a text that is no
JSON is the value itself (SageMaker training toolkit). Some of the reserved ones are the runtime's
own settings: ``SM_RUNTIME_<NAME>``, or ``sagemaker_runtime_<name>``; the variable wins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from sm_runtime.contract.reader import (
    LARGEST,
    Field,
    Findings,
    closest,
    one_of,
    shallow,
    shown,
    unfit,
)
from sm_runtime.job.dataclass import dataclass, field, fields
from sm_runtime.job.model import Json, Options
from sm_runtime.launch.distribution import MOST_PROCESSES

PREFIX = "sagemaker_"
WELL_KNOWN = frozenset(
    {
        "sagemaker_program",
        "sagemaker_submit_directory",
        "sagemaker_enable_cloudwatch_metrics",
        "sagemaker_region",
        "sagemaker_container_log_level",
        "sagemaker_job_name",
        "default_user_module_name",
        "_tuning_objective_metric",
        "sagemaker_s3_output",
    }
)
"""The reserved keys that are no framework's parameters."""

_LEVELS = {
    "NOTSET": 0,
    "DEBUG": 10,
    "INFO": 20,
    "WARN": 30,
    "WARNING": 30,
    "ERROR": 40,
    "CRITICAL": 50,
    "FATAL": 50,
}
DISTRIBUTIONS = (
    "sagemaker_mpi_enabled",
    "sagemaker_parameter_server_enabled",
    "sagemaker_distributed_dataparallel_enabled",
    "sagemaker_pytorch_ddp_enabled",
    "sagemaker_pytorch_xla_multi_worker_enabled",
    "sagemaker_multi_worker_mirrored_strategy_enabled",
    "sagemaker_torch_distributed_enabled",
)
"""The keys that each turn on a way of distributed training."""
_FLAGS = frozenset(
    {
        *DISTRIBUTIONS,
        "sagemaker_enable_cloudwatch_metrics",
        "sagemaker_training_compiler_enabled",
        "sagemaker_training_compiler_debug_mode",
    }
)
_COUNTS = {
    "sagemaker_mpi_num_of_processes_per_host": MOST_PROCESSES,
    "sagemaker_mpi_num_processes": LARGEST,  # see launch.distribution: the hosts count, too
}
_TEXTS = frozenset(
    {
        *WELL_KNOWN - {"sagemaker_enable_cloudwatch_metrics", "sagemaker_container_log_level"},
        "sagemaker_mpi_custom_mpi_options",
        "sagemaker_distributed_dataparallel_custom_mpi_options",
        "sagemaker_instance_type",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """The hyperparameters, decoded and parted."""

    user: dict[str, Json] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    """The user's as they stand in the file."""
    reserved: dict[str, Json] = field(default_factory=dict)
    framework: dict[str, Json] = field(default_factory=dict)
    decoded: dict[str, Field] = field(default_factory=dict)
    """The framework's, with the places where they stand."""


def read_hyperparameters(raw: Mapping[str, Field]) -> Hyperparameters:
    """Return the hyperparameters; what is wrong goes to the findings of each."""
    found = Hyperparameters()
    for key, at in raw.items():
        value = decode(at.value)
        if not (key in WELL_KNOWN or key.startswith(PREFIX)):
            if _fits(key, at, value):
                found.user[key] = value
                found.texts[key] = encoded(at.value)
            continue
        value = _reserved(key, at, value)
        if key not in WELL_KNOWN:
            found.framework[key] = value
            found.decoded[key] = at.with_value(value)
        elif value is not None:
            found.reserved[key] = value
    return found


def encoded(value: Json) -> str:
    """Return a value as the platform has it in ``hyperparameters.json``: as a text."""
    return value if isinstance(value, str) else _compact(value)


def decode(value: Json) -> Json:
    """Return what the text of a hyperparameter means: its JSON, else the text itself."""
    if not isinstance(value, str):
        return value
    try:
        decoded = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return decoded if shallow(decoded) else value


def log_level(at: Field) -> int | None:
    """Return a log level that is given as a number, as its text, or by name."""
    value = at.value
    if isinstance(value, str):
        text = value.strip().upper()
        value = int(text) if re.fullmatch("[0-9]{1,4}", text) else _LEVELS.get(text)
    elif not at.present:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1000:
        at.must("a log level: a number like 20, or DEBUG, INFO, WARNING, ERROR or CRITICAL")
        return None
    return value


def _reserved(key: str, at: Field, value: Json) -> Json:
    """Return the value of a reserved key, checked if its meaning is known."""
    decoded = at.with_value(value)
    if value is None:
        return None
    if key in _FLAGS:
        return decoded.flag()
    if key in _COUNTS:
        return decoded.integer(minimum=1, maximum=_COUNTS[key])
    if key == "sagemaker_container_log_level":
        return log_level(decoded)
    if key == "sagemaker_distribution_instance_groups":
        return list(decoded.texts())
    if key in _TEXTS:
        # A name like 123 is JSON by chance: what was written counts, not what it means.
        if isinstance(value, dict | list):
            decoded.must("a string")
            return None
        plain = value if isinstance(value, str) else at.value
        return at.with_value(plain if isinstance(plain, str) else _compact(plain)).text()
    return value


def _fits(key: str, at: Field, value: Json) -> bool:
    """Whether a hyperparameter can become an argument and a variable; note what cannot."""
    faults = len(at.findings.problems)
    if "=" in key:
        at.wrong("holds '=' in its key, which the name of a variable (SM_HP_...) cannot")
    reason = unfit(key)
    if reason:
        at.wrong(f"the key {reason}")
    texts = [value]
    if isinstance(value, dict):
        texts = [*value, *value.values()]
    for text in texts:
        reason = unfit(text) if isinstance(text, str) else None
        if reason:
            at.wrong(f"{reason}: {shown(key, text)}")
    return len(at.findings.problems) == faults


def _compact(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"))


VARIABLE_PREFIX = "SM_RUNTIME_"
KEY_PREFIX = "sagemaker_runtime_"
_STYLES = ("sagemaker", "flags", "json")
_PORTS = 10
"""How many ports from ``cluster_port`` on the leader tries: see ``cluster/connection.py``."""
_SIGNALS = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2")
_LAST_ID = 2**32 - 2
"""The largest id of a user or a group; the one after it means none to chown(2)."""
_OTHERS = (
    "JOB", "HOSTS", "NUM_HOSTS", "CURRENT_HOST", "ENGINE", "CLUSTER_SECRET", "CLUSTER_SECRET_FILE",
)  # fmt: skip
"""What other parts of the runtime read from variables, and only from there."""
_OF_SERVING = ("ACCESS_LOG", "DRAIN_SECONDS", "EVICT_MODELS")
"""What ``serve`` reads, which may run in the same image."""
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
    internal = [VARIABLE_PREFIX + name for name in (*_INTERNAL, *_OF_SERVING)]
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

"""Values by reference: ``{"$file": "/run/secrets/key"}`` stands for what the file holds.

For hyperparameters and variables whose value must not be in a request, in a log or in an image's
configuration: it is read when the job starts, masked everywhere, and given to the script alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from sm_runtime.contract.config_files import read_regular
from sm_runtime.contract.environment import CLUSTER_SECRET
from sm_runtime.job.errors import ConfigError
from sm_runtime.job.model import Job, Json

KEY = "$file"


def resolved(job: Job, environ: Mapping[str, str]) -> tuple[Job, tuple[str, ...]]:
    """Return ``job`` with the values in the place of references, and what is wrong with these.

    Variables that the script would inherit from ``environ`` become variables of the job.
    """
    problems: list[str] = []
    variables: dict[str, str] = {}
    for name, text in {**environ, **job.environment}.items():
        if name not in CLUSTER_SECRET and (path := path_of(text)) is not None:
            variables[name] = _read(path, f"environment: {name}", problems)
    hyperparameters = {
        key: _read(path, f"hyperparameters: {key}", problems)
        for key, value in job.hyperparameters.items()
        if (path := path_of(value)) is not None
    }
    if not (variables or hyperparameters):
        return job, ()
    secrets = {text for text in (*variables.values(), *hyperparameters.values()) if text}
    return replace(
        job,
        environment={**job.environment, **variables},
        hyperparameters={**job.hyperparameters, **hyperparameters},
        texts={**job.texts, **{key: json.dumps(text) for key, text in hyperparameters.items()}},
        referenced=tuple(sorted(secrets)),
    ), tuple(problems)


def path_of(value: Json) -> str | None:
    """Return the path of a reference; None for any other value."""
    if isinstance(value, str) and KEY in value:
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, Mapping) or set(value) != {KEY}:
        return None
    path = value[KEY]
    return path if isinstance(path, str) else None


def _read(path: str, where: str, problems: list[str]) -> str:
    """Return the text of a file, without the line feed at its end."""
    try:
        data = read_regular(path)
    except ConfigError as error:
        problems.append(f"{where}: {KEY}: {error}")
        return ""
    if data is None:
        problems.append(f"{where}: {KEY}: {path}: does not exist")
        return ""
    text = data.decode("utf-8", "surrogateescape")
    if "\0" in text:
        problems.append(f"{where}: {KEY}: {path}: holds a NUL byte, which no program can be given")
        return ""
    return text.removesuffix("\n").removesuffix("\r")

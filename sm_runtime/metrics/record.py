"""What is known of a job at its end, in one file: ``output/metrics/job.json``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sm_runtime import __version__
from sm_runtime.contract import environment

if TYPE_CHECKING:
    from sm_runtime.job.failure import Failure
    from sm_runtime.job.model import Channel, Job, Json, Options
    from sm_runtime.timeline import Timeline

NAME = "job.json"


def write(
    job: Job,
    *,
    kind: str,
    hosts: tuple[str, ...],
    processes_per_host: int,
    timeline: Timeline,
    failure: Failure | None,
    saved: list[str],
    mask: Callable[[str], str],
) -> None:
    """Write the file, secrets masked; raises OSError where that cannot be done."""
    cluster = job.cluster
    document = {
        "runtime": __version__,
        "python": sys.version.partition(" ")[0],
        "name": job.name,
        "managed": job.managed,
        "status": "failure" if failure else "success",
        "exit": failure.status if failure else 0,
        "started": round(timeline.started_at, 3),
        "seconds": round(timeline.seconds(), 3),
        "phases": [
            {"name": name, "begin": round(begun, 4), "end": round(ended, 4)}
            for name, begun, ended in timeline.spans
        ],
        "failure": failure.as_dict() if failure else None,
        "kind": kind,
        "host": cluster.current_host,
        "hosts": list(hosts),
        "processes_per_host": processes_per_host,
        "program": job.program,
        "arguments": list(environment.arguments(job)),
        "hyperparameters": dict(job.hyperparameters),
        "channels": [_channel(channel) for channel in job.channels],
        "output": job.output.uri if job.output else None,
        "options": _set_options(job.options),
        "saved": saved,
    }
    path = job.paths.under("output", "metrics", NAME)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".part", "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(json.dumps(_masked(document, mask), default=str))  # indented it takes ten times
    os.replace(path + ".part", path)


def _channel(channel: Channel) -> dict[str, Json]:
    source = channel.source
    return {
        "name": channel.name,
        "mode": channel.mode,
        "from": source.uri if source is not None else None,
    }


def _set_options(options: Options) -> dict[str, Json]:
    """Return the options that are not as they are by themselves."""
    pairs = ((each.name, getattr(options, each.name), each.default) for each in fields(options))
    return {name: value for name, value, default in pairs if value != default}


def _masked(value: Any, mask: Callable[[str], str]) -> Any:
    """Return a JSON value with its texts and numbers masked."""
    if isinstance(value, Mapping):
        return {str(key): _masked(item, mask) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(item, mask) for item in value]
    if value is None or isinstance(value, bool):
        return value
    text = mask(str(value))
    return value if text == str(value) else text

"""What is known of a job at its end, in one file: ``output/metrics/job.json``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sm_runtime import __version__
from sm_runtime.contract import environment

if TYPE_CHECKING:
    from sm_runtime.job.failure import Failure
    from sm_runtime.job.model import Channel, Job, Json
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
        "options": {name: value for name, value in asdict(job.options).items() if value},
        "saved": saved,
    }
    path = job.paths.under("output", "metrics", NAME)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".part", "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(_masked(document, mask), file, indent=1, default=str)
    os.replace(path + ".part", path)


def _channel(channel: Channel) -> dict[str, Json]:
    source = channel.source
    return {
        "name": channel.name,
        "mode": channel.mode,
        "from": source.uri if source is not None else None,
    }


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

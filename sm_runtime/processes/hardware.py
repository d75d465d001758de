"""Counts what this host gives to a job, once: CPUs, GPUs and Neuron cores."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace

from sm_runtime.job.model import Hardware, Job
from sm_runtime.processes import cgroup

log = logging.getLogger(__name__)

_TOOL_SECONDS = 10


NEURONS = {"trn2.48xlarge": 64}
"""Instance types that imply their number of Neuron cores, as for SageMaker's toolkit."""


def of_job(job: Job, environ: Mapping[str, str]) -> Hardware:
    """Return the hardware that is there and that the variables let a job use."""
    found = count({**environ, **job.environment})
    kind = job.cluster.current_instance_type.removeprefix("ml.")
    return replace(found, neurons=NEURONS.get(kind, found.neurons))


def count(environ: Mapping[str, str], root: str = "/") -> Hardware:
    """Return the hardware that is there and that ``environ`` lets a job use.

    ``root`` holds ``dev``, ``proc`` and ``sys``.
    """
    return Hardware(cpus=cpus(root), gpus=_gpus(environ, root), neurons=_neurons(environ))


def cpus(root: str = "/") -> int:
    """Return the CPUs that may be used at once: a quota of one and a half makes two."""
    allowed = len(os.sched_getaffinity(0))
    limit = cgroup.cpu_limit(root)
    return allowed if limit is None else max(1, min(allowed, math.ceil(limit)))


def _gpus(environ: Mapping[str, str], root: str) -> int:
    devices = _device_nodes(root)
    if not devices and environ.get("NVIDIA_VISIBLE_DEVICES") not in ("none", "void", ""):
        listing = _output(environ, "nvidia-smi", "--list-gpus")
        devices = sum(line.startswith("GPU ") for line in listing.splitlines())
    if devices and "CUDA_VISIBLE_DEVICES" not in environ:
        given = environ.get("SLURM_GPUS_ON_NODE", "")  # for a cluster that leaves it at that
        return min(devices, int(given)) if re.fullmatch("[0-9]{1,4}", given) else devices
    return devices and _visible(environ["CUDA_VISIBLE_DEVICES"], devices)


def _device_nodes(root: str) -> int:
    """Return how many GPUs this container can open.

    A container sees the driver's files of all the host's GPUs, and device nodes for its own alone;
    where the NVIDIA runtime hides driver files, theirs is the smaller number.
    """
    nodes = [name for name in _list(root, "dev") if re.fullmatch(r"nvidia[0-9]+", name)]
    driver = _list(root, "proc/driver/nvidia/gpus")
    return min(len(nodes), len(driver)) if driver else len(nodes)


def _visible(value: str, devices: int) -> int:
    """Return how many of ``devices`` GPUs ``CUDA_VISIBLE_DEVICES`` leaves.

    As CUDA reads it: the list ends before the first entry that names no device, all entries are
    of one kind (numbers, ``GPU-`` or ``MIG-`` names), and one named twice makes all invisible.
    """
    entries = [entry.strip() for entry in value.split(",")]
    kind = next((kind for kind in ("GPU-", "MIG-") if entries[0].startswith(kind)), "")
    seen: list[str] = []
    for entry in entries:
        if kind:
            valid = entry.startswith(kind)
        else:
            valid = bool(re.fullmatch(r"\+?[0-9]{1,9}", entry)) and int(entry) < devices
            entry = str(int(entry)) if valid else entry
        if not valid:
            break
        if entry in seen:
            return 0
        seen.append(entry)
    return len(seen) if kind == "MIG-" else min(len(seen), devices)


def _neurons(environ: Mapping[str, str]) -> int:
    listing = _output(environ, "neuron-ls", "-j")
    try:
        return sum(int(device.get("nc_count", 0)) for device in json.loads(listing or "[]"))
    except (ValueError, TypeError, AttributeError):
        log.warning("neuron-ls answered something else than a list of devices: no Neuron cores")
        return 0


def _output(environ: Mapping[str, str], *command: str) -> str:
    """Return what a tool prints; nothing if it is not on ``PATH``, fails, or does not answer."""
    path = _which(command[0], environ.get("PATH", os.defpath))
    if path is None:
        return ""
    import subprocess

    try:
        return subprocess.run(
            (path, *command[1:]),
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TOOL_SECONDS,
            check=True,
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s failed, its devices are not counted: %s", path, error)
        return ""


def _which(name: str, path: str) -> str | None:
    for folder in path.split(os.pathsep):
        candidate = os.path.join(folder, name)
        if os.path.isabs(folder) and os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


def _list(root: str, folder: str) -> list[str]:
    try:
        return os.listdir(os.path.join(root, folder))
    except OSError:
        return []

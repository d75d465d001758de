"""What this host gives to a job: CPUs, GPUs and Neuron cores, and the limits of its control group.

Control groups: versions 1 and 2, and both at once. A container sees its own group as the root of
``/sys/fs/cgroup``, or at the path that ``/proc/self/cgroup`` names; on a plain host a limit may be
that of a group above. What cannot be read sets no limit. Files: the kernel's cgroup-v1 and
cgroup-v2 guides.
"""

from __future__ import annotations

import json
import logging
import math
import os
import posixpath
import re
from collections.abc import Mapping

from sm_runtime.job.dataclass import replace
from sm_runtime.job.model import Hardware, Job

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
    limit = cpu_limit(root)
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


_UNLIMITED = 1 << 60
"""From here on a limit of version 1 is none: the kernel writes the largest number of pages."""


def cpu_limit(root: str = "/") -> float | None:
    """Return how many CPUs this group may use; None without a limit."""
    limits = []
    for version, folder in _folders(root, "cpu"):
        if version == 2:
            quota, _, period = _read(folder, "cpu.max").partition(" ")
        else:
            quota, period = _read(folder, "cpu.cfs_quota_us"), _read(folder, "cpu.cfs_period_us")
        allowed, length = _number(quota), _number(period)
        if allowed and length:
            limits.append(allowed / length)
    return min(limits, default=None)


def memory_limit(root: str = "/") -> int | None:
    """Return how many bytes of memory this group may use; None without a limit."""
    limits = []
    for version, folder in _folders(root, "memory"):
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"
        limit = _number(_read(folder, name))
        if limit and limit < _UNLIMITED:
            limits.append(limit)
    return min(limits, default=None)


def memory_used(root: str = "/") -> int | None:
    """Return how many bytes this group uses, caches that can be dropped left out; None: unknown."""
    for version, folder in _folders(root, "memory"):
        used = _number(_read(folder, "memory.current" if version == 2 else "memory.usage_in_bytes"))
        if used is not None:
            name = "inactive_file" if version == 2 else "total_inactive_file"
            return max(0, used - (_entry(folder, "memory.stat", name) or 0))
    return None


def cpu_microseconds(root: str = "/") -> int | None:
    """Return how much CPU time this group has used so far; None: unknown."""
    for version, folder in _folders(root, "cpuacct"):
        if version == 2:
            used = _entry(folder, "cpu.stat", "usage_usec")
        else:
            nanoseconds = _number(_read(folder, "cpuacct.usage"))
            used = None if nanoseconds is None else nanoseconds // 1000
        if used is not None:
            return used
    return None


def oom_kills(root: str = "/") -> int:
    """Return how many processes of this group the kernel has ended for want of memory so far."""
    for version, folder in _folders(root, "memory"):
        name = "memory.events" if version == 2 else "memory.oom_control"
        count = _entry(folder, name, "oom_kill")
        if count is not None:
            return count
    return 0


def shared_memory(root: str = "/") -> tuple[int | None, int | None]:
    """Return the size of ``/dev/shm`` and how much of it is free, in bytes; None without it.

    A container engine gives it 64 MiB by default. What a process maps of it and finds no room for
    ends the process with SIGBUS.
    """
    try:
        found = os.statvfs(os.path.join(root, "dev/shm"))
    except OSError:
        return None, None
    return found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail


def _folders(root: str, controller: str) -> list[tuple[int, str]]:
    """Return the folders of the own group and of those above it, each with its version."""
    mount = os.path.join(root, "sys/fs/cgroup")
    found: list[tuple[int, str]] = []
    for line in _read(os.path.join(root, "proc/self"), "cgroup").splitlines() or ["0::/"]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller in controllers.split(","):
            # "cpu,cpuacct" is mounted under that name, mostly with a link for each of the two.
            bases = [os.path.join(mount, name) for name in dict.fromkeys((controllers, controller))]
            base = next((base for base in bases if os.path.isdir(base)), None)
            version = 1
        elif not controllers:
            bases = [mount, os.path.join(mount, "unified")]
            base = next((b for b in bases if _exists(b, "cgroup.procs")), None)
            version = 2
        else:
            continue
        if base is not None:
            found += [(version, folder) for folder in _upwards(base, path)]
    return found


def _upwards(base: str, path: str) -> list[str]:
    """Return the folders from ``path`` below ``base`` up to ``base`` itself."""
    parts = [part for part in posixpath.normpath("/" + path).split("/") if part]
    return [os.path.join(base, *parts[:count]) for count in range(len(parts), -1, -1)]


def _exists(folder: str, name: str) -> bool:
    return os.path.exists(os.path.join(folder, name))


def _read(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def _entry(folder: str, name: str, key: str) -> int | None:
    """Return the number that stands behind ``key`` in a file with an entry on each line."""
    for line in _read(folder, name).splitlines():
        found, _, value = line.partition(" ")
        if found == key:
            return _number(value)
    return None


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 30 else None

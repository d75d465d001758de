"""What is measured while a script runs: the metrics in its output, and what its host gives.

Both are files below ``output/metrics``; nothing here may cost the job its end. A sample of the host
(CPU, memory, disk, network, GPUs) is an object on a line of ``host.jsonl``, every
``SAMPLE_SECONDS``; a job that ends before the first has none, and pays nothing. What a host cannot
tell is left out.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sm_runtime.job.model import Job
from sm_runtime.processes import hardware

if TYPE_CHECKING:
    from sm_runtime.metrics.reader import MetricsReader
    from sm_runtime.processes.supervisor import Supervisor

log = logging.getLogger(__name__)


class Measurement:
    """What is measured of one attempt at a job."""

    def __init__(self) -> None:
        self._reader: MetricsReader | None = None
        self._sampler: HostSampler | None = None

    def start(self, job: Job, secrets: Sequence[str], supervisor: Supervisor) -> None:
        """Begin, before the script starts; ``secrets`` are masked in lines that are kept."""
        if job.metrics:
            from sm_runtime.metrics.reader import MetricsReader

            try:
                self._reader = MetricsReader(job, secrets)
            except Exception as error:  # a job runs without them
                log.warning("metrics are not read: %s", error)
            else:
                supervisor.exclude(self._reader.pid)
                supervisor.tap = self._reader.tap
        if job.options.host_metrics:
            sampler = HostSampler(job)
            try:
                sampler.start()
            except (RuntimeError, MemoryError) as error:  # no more threads, or no memory for one
                log.debug("the host is not sampled: %s", error)
            else:
                self._sampler = sampler

    def finish(self, is_stopped: Callable[[], bool]) -> None:
        """End, the script being gone; log what was found. Nothing is raised.

        What is left of the output has ``FINISH_SECONDS``, after a stop ``STOPPED_SECONDS``.
        """
        try:
            lines = self._reader.finish(is_stopped) if self._reader else []
            lines += self._sampler.finish() if self._sampler else []
        except Exception as error:  # whatever is wrong with them, the job has ended as it has
            log.warning("metrics are not summed up: %s: %s", type(error).__name__, error)
            return
        for line in lines:
            log.info("%s", line)


SAMPLE_SECONDS = 5.0
SHORT_SECONDS = 0.1
"""In less time nothing can be said of what moves: the first sample has no rates."""

_Sample = dict[str, Any]


class HostSampler:
    """Samples in a thread of its own, from ``start`` to ``finish``."""

    def __init__(self, job: Job, seconds: float = SAMPLE_SECONDS) -> None:
        self.path = job.paths.under("output", "metrics", "host.jsonl")
        self._host, self._base, self._seconds = job.cluster.current_host, job.paths.base, seconds
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="host-metrics", daemon=True)
        self._totals: dict[str, tuple[float, float]] = {}
        """Of each number that was sampled: its sum and its greatest value."""
        self._count = 0

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def finish(self) -> list[str]:
        """Stop to sample; return the line for the log, if there is anything to say."""
        self._has_ended.set()
        self._thread.join(1.0)
        return [self._summary()] if self._count else []

    def _run(self) -> None:
        if self._has_ended.wait(self._seconds):
            return
        try:
            sources = _sources(self._base)
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                while True:
                    sample: _Sample = {"time": round(time.time(), 3), "host": self._host}
                    for source in sources:
                        sample |= source()
                    file.write(json.dumps(sample) + "\n")
                    file.flush()
                    self._add(sample)
                    if self._has_ended.wait(self._seconds):
                        return
        except Exception as error:  # the job goes on without it
            log.warning("host metrics end here: %s: %s", type(error).__name__, error)

    def _add(self, sample: _Sample) -> None:
        self._count += 1
        numbers = {key: value for key, value in sample.items() if isinstance(value, int | float)}
        if gpus := sample.get("gpus"):
            numbers["gpu_percent"] = sum(gpu["percent"] for gpu in gpus) / len(gpus)
            numbers["gpu_memory_bytes"] = max(gpu["memory_bytes"] for gpu in gpus)
        for key, value in numbers.items():
            total, greatest = self._totals.get(key, (0.0, 0.0))
            self._totals[key] = total + value, max(greatest, value)

    def _summary(self) -> str:
        """Return the means and peaks of what a person asks for first."""
        parts = []
        for key, name, show in _SHOWN:
            if key in self._totals:
                total, greatest = self._totals[key]
                parts.append(f"{name} {show(total / self._count)} (peak {show(greatest)})")
        return f"host: {', '.join(parts)}"


def _percent(value: float) -> str:
    return f"{value:.0f} %"


def _gib(value: float) -> str:
    return f"{value / 2**30:.1f} GiB"


_SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("cpu_percent", "CPU", _percent),
    ("memory_bytes", "memory", _gib),
    ("gpu_percent", "GPU", _percent),
    ("gpu_memory_bytes", "memory of the fullest GPU", _gib),
)


def _sources(base: str) -> list[Callable[[], _Sample]]:
    """Return what is asked for each sample: each returns a part of it."""
    import psutil

    return [_Rates(psutil).sample, lambda: _levels(psutil, base), *_gpus()]


def _levels(psutil: Any, base: str) -> _Sample:
    """Return what is used now, and of how much."""
    memory, limit = psutil.virtual_memory(), hardware.memory_limit()
    used = hardware.memory_used()
    disk = psutil.disk_usage(base)
    return {
        "memory_bytes": memory.total - memory.available if used is None else used,
        "memory_limit_bytes": min(memory.total, limit or memory.total),
        "machine_memory_bytes": memory.total - memory.available,
        "disk_used_bytes": disk.used,
        "disk_free_bytes": disk.free,
    }


class _Rates:
    """What is counted since the last sample: CPU time of this container, bytes moved."""

    def __init__(self, psutil: Any) -> None:
        self._psutil, self._cpus = psutil, hardware.cpus()
        self._time, self._counts = time.monotonic(), self._read()

    def sample(self) -> _Sample:
        now, counts = time.monotonic(), self._read()
        seconds = now - self._time
        if seconds < SHORT_SECONDS:
            return {"cpus": self._cpus}
        rates: dict[str, float] = {
            name: round((count - self._counts[name]) / seconds)
            for name, count in counts.items()
            if name in self._counts
        }
        self._time, self._counts = now, counts
        rates["cpu_percent"] = round(rates.pop("cpu_microseconds", 0) / 1e4 / self._cpus, 1)
        return {"cpus": self._cpus, **rates}

    def _read(self) -> dict[str, float]:
        psutil = self._psutil
        used = hardware.cpu_microseconds()
        if used is None:
            times = psutil.cpu_times()
            used = (sum(times[:8]) - times.idle - getattr(times, "iowait", 0.0)) * 1e6
        found = {"cpu_microseconds": used}
        if (disk := psutil.disk_io_counters()) is not None:
            found |= {
                "disk_read_bytes_per_second": disk.read_bytes,
                "disk_written_bytes_per_second": disk.write_bytes,
            }
        if (net := psutil.net_io_counters()) is not None:
            found |= {
                "network_received_bytes_per_second": net.bytes_recv,
                "network_sent_bytes_per_second": net.bytes_sent,
            }
        return found


def _gpus() -> list[Callable[[], _Sample]]:
    """Return what samples the GPUs, where there is a driver and NVIDIA's library for it."""
    if not os.path.exists("/dev/nvidiactl"):
        return []
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    except Exception as error:  # not installed, or a driver of another version
        log.info("GPUs are not sampled: %s", error)
        return []

    def sample() -> _Sample:
        found = []
        for handle in handles:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            use = nvml.nvmlDeviceGetUtilizationRates(handle)
            found.append(
                {"percent": use.gpu, "memory_bytes": memory.used, "limit_bytes": memory.total}
            )
        return {"gpus": found}

    return [sample]

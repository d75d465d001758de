"""Has metrics read off the script's output as it arrives, in another process.

Relays hand over what they carry and never wait: what the other process cannot take is held, up to
``HELD_BYTES``, and then left out, which the log says.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any

from sm_runtime import programs
from sm_runtime.job.model import Job
from sm_runtime.metrics.scan import BLOCK
from sm_runtime.processes.relay import Tap

log = logging.getLogger(__name__)

HELD_BYTES = 64 * 2**20
"""The most of the output that is held for the other process."""
FINISH_SECONDS = 10.0
"""How long the other process may take for what is left when the script has ended."""
STOPPED_SECONDS = 1.0
"""The same after a request to stop."""
LOOK_SECONDS = 0.1
GATHER_SECONDS = 0.02
"""How long output is gathered before it is handed over: lines one by one would cost too much."""


class MetricsReader:
    """The metrics of one job, on this host; ``secrets`` are masked in the lines it writes."""

    def __init__(self, job: Job, secrets: Sequence[str]) -> None:
        self.path = job.paths.under("output", "metrics", "script.jsonl")
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        self._metrics = job.metrics
        self._streams = itertools.count()
        self._blocks: dict[int, tuple[float, bytearray]] = {}
        """What has arrived on each stream and is not handed over yet, and since when."""
        self._held_bytes = self._lost_bytes = 0
        self._has_ended = self._is_broken = False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._process = subprocess.Popen(
            programs.start(sys.executable, "sm_runtime.metrics.scan:main"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env={"PATH": os.defpath},
            start_new_session=True,
            bufsize=0,
        )
        self.pid = self._process.pid
        config = {
            "path": self.path,
            "host": job.cluster.current_host,
            "secrets": list(secrets),
            "definitions": [(metric.name, metric.regex) for metric in job.metrics],
        }
        self._config = json.dumps(config).encode() + b"\n"
        self._summary = b""
        try:
            for name, work in (("metrics", self._write), ("metrics-summary", self._read)):
                threading.Thread(target=work, name=name, daemon=True).start()
        except BaseException:
            self._process.kill()
            raise

    def tap(self) -> Tap:
        """Return what takes the bytes of one more stream; it never waits."""
        stream = next(self._streams)

        def take(data: memoryview) -> None:
            # Short: a script may write a line at a time.
            with self._lock:
                if self._is_broken or self._held_bytes + len(data) > HELD_BYTES:
                    self._lost_bytes += len(data)
                    return
                self._held_bytes += len(data)
                if block := self._blocks.get(stream):
                    block[1].extend(data)
                    return
                self._blocks[stream] = time.time(), bytearray(data)
                self._changed.notify_all()

        return take

    def finish(self, is_stopped: Callable[[], bool]) -> list[str]:
        """Wait for what is left, not long after a stop; return what to log."""
        deadline = time.monotonic() + FINISH_SECONDS
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()
            while not self._summary and (left := deadline - time.monotonic()) > 0:
                if is_stopped():
                    deadline = min(deadline, time.monotonic() + STOPPED_SECONDS)
                    is_stopped = _never
                self._changed.wait(min(left, LOOK_SECONDS))
            summary = self._summary
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)  # the supervisor may have reaped it already
        lines = []
        if self._lost_bytes:
            lines.append(f"metrics: {self._lost_bytes} bytes of the output were not searched")
        if not summary.strip():
            return [*lines, "metrics: the last lines could not be searched in time"]
        # The last line: what is installed may print something at Python's start.
        return [*lines, *map(_line, json.loads(summary.splitlines()[-1]))]

    def _write(self) -> None:
        """Hand over what has arrived, as much at a time as comes in ``GATHER_SECONDS``."""
        assert self._process.stdin
        with self._process.stdin as file:
            try:
                self._write_all(file, self._config)
                while blocks := self._gathered():
                    for stream, (arrived, data) in blocks.items():
                        self._write_all(file, BLOCK.pack(stream, arrived, len(data)))
                        self._write_all(file, data)
                        with self._lock:
                            self._held_bytes -= len(data)
            except OSError:  # the other process has ended; its summary will be missing
                with self._lock:
                    self._is_broken, self._held_bytes = True, 0
                    self._blocks.clear()

    def _gathered(self) -> dict[int, tuple[float, bytearray]]:
        """Wait for something, and for more of it; nothing when the script has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._blocks or self._has_ended)
            self._changed.wait_for(lambda: self._has_ended, GATHER_SECONDS)
            taken, self._blocks = self._blocks, {}
        return taken

    @staticmethod
    def _write_all(file: IO[bytes], data: bytes | bytearray) -> None:
        view = memoryview(data)
        while view:
            view = view[file.write(view) or 0 :]

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as file:
            said = file.read()
        with self._changed:
            self._summary = said or b"\n"
            self._changed.notify_all()


def _never() -> bool:
    return False


def _line(found: dict[str, Any]) -> str:
    """Return what the log says of a metric at the end."""
    name = found["name"]
    given_up = "; its regular expression is too slow and was given up" * found["given_up"]
    if not found["count"]:
        return f"metric {name}: no line matched{given_up}"
    values = ", ".join(f"{key} {found[key]:g}" for key in ("last", "least", "greatest"))
    return f"metric {name}: {found['count']} values, {values}{given_up}"

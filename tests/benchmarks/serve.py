"""Measures the command ``serve`` with the Fashion-MNIST model that the example trains.

Beside it: the signature's bare call in a process of its own, and a plain Flask application under
gunicorn (flask_app.py). All of them stay up; in a round they take turns.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from tests.benchmarks import load
from tests.benchmarks.load import Body, Load
from tests.benchmarks.report import (
    Bar,
    Failed,
    Report,
    Row,
    measured,
    parser,
    take_part,
    times,
    within,
)
from tests.benchmarks.serve_ways import JSON, NPY, Bare, Served, asked, body, flask, mebibytes, ours

CALLS = 300
"""Requests of a round, one after another."""
LARGE = 1000
LARGE_CALLS = 10
CONNECTIONS = 64
LOAD_SECONDS = 4
SETTINGS: dict[str, dict[str, str]] = {
    "alone": {},
    "batching": {"SAGEMAKER_TFS_ENABLE_BATCHING": "true"},
    "batching, 64 rows": {
        "SAGEMAKER_TFS_ENABLE_BATCHING": "true",
        "SAGEMAKER_TFS_MAX_BATCH_SIZE": "64",
    },
}


def median(costs: Mapping[str, list[tuple[float, ...]]], way: str, part: int = 0) -> float | None:
    """Return the median of a way's rounds."""
    return statistics.median(one[part] for one in costs[way]) if costs.get(way) else None


class Bench:
    """All that is measured, with what is up for it."""

    def __init__(self, report: Report, rounds: int, model: Path, folder: Path, data: Path) -> None:
        self.report, self.rounds, self.model, self.folder = report, rounds, model, folder
        with np.load(data) as arrays:
            self.images = arrays["images"][:LARGE, ..., np.newaxis].astype("float32")
        self.file = folder / "images.npy"
        np.save(self.file, self.images)
        self._count = 0

    @contextmanager
    def up(self, settings: Mapping[str, str]) -> Iterator[Served]:
        """Yield a server of ours."""
        self._count += 1
        server = ours(self.folder / str(self._count), self.model, settings)
        try:
            yield server
        finally:
            server.stop()

    def one_client(self, bare: Bare, server: Served) -> None:
        """Add rows of single requests, memory and start, and of a large batch."""
        one, large = self.images[:1], body(self.images, NPY)
        ways = {
            "bare": lambda: bare.call(1, CALLS),
            "json": lambda: asked(server.port, body(one, JSON), CALLS),
            "npy": lambda: asked(server.port, body(one, NPY), CALLS),
        }
        costs = self._turns(ways, "one image")
        reference = {"signature's call": median(costs, "bare")}
        for kind in ("json", "npy"):
            cost = median(costs, kind)
            self.report.add(
                Row(
                    work=f"one image, {'JSON' if kind == 'json' else kind}: median",
                    unit="ms",
                    ours=_ms(cost),
                    bare={name: _ms(value) for name, value in reference.items()},
                    bars=(beyond_ms(cost, reference["signature's call"], 1.5),),
                )
            )
        self._memory(bare, server)
        ways = {
            "bare": lambda: bare.call(LARGE, LARGE_CALLS),
            "npy": lambda: asked(server.port, large, LARGE_CALLS),
        }
        costs = self._turns(ways, "1,000 images")
        cost, other = median(costs, "npy"), median(costs, "bare")
        self.report.add(
            Row(
                work="1,000 images, npy: median",
                unit="ms",
                ours=_ms(cost),
                bare={"signature's call": _ms(other)},
                bars=(within(cost, other, 1.3, "signature's call"),),
            )
        )

    def _memory(self, bare: Bare, server: Served) -> None:
        mine, other = mebibytes(server.pid), bare.mebibytes
        limit = Bar(
            text="≤ TensorFlow and model + 40 MiB",
            got=f"{mine - other:+.0f} MiB",
            met=mine - other <= 40,
        )
        self.report.add(
            Row(
                work="memory after single images, all processes",
                unit="MiB",
                ours=mine,
                bare={"TensorFlow and model": other},
                bars=(limit,),
            ),
            Row(
                work="ready after",
                unit="s",
                ours=server.ready_seconds,
                bare={"TensorFlow, model and a call": bare.ready_seconds},
            ),
        )

    def many_clients(self, servers: Mapping[str, Served], peer: Served | None) -> None:
        """Add rows of 64 connections: throughput, 99th percentile, rows of batches."""
        for kind in (NPY, JSON):
            content = body(self.images[:1], kind)
            before = {name: _batches(server) for name, server in servers.items()}
            ways = dict(servers)
            if peer is not None and kind == JSON:
                ways["Flask"] = peer
            costs = self._turns(
                {name: self._loader(server, content) for name, server in ways.items()},
                f"64 at once, {kind}",
            )
            self._throughput(kind, costs)
            self._latency(kind, costs)
            for name, server in servers.items():
                if name != "alone":
                    rows, count = _batches(server)
                    rows, count = rows - before[name][0], count - before[name][1]
                    work = f"64 at once, {_short(kind)}, {name}: rows of a batch, mean"
                    self.report.add(Row(work=work, unit="rows", ours=rows / max(count, 1)))

    @staticmethod
    def _loader(server: Served, content: Body) -> Callable[[], tuple[float, ...]]:
        def run() -> tuple[float, ...]:
            found = load.with_wrk(server.port, content, CONNECTIONS, LOAD_SECONDS)
            if found.failed:
                raise Failed(f"{found.failed} requests failed: {found.errors}")
            return found.answers / found.seconds, found.p99

        return run

    def _throughput(self, kind: str, costs: Mapping[str, list[tuple[float, ...]]]) -> None:
        alone = median(costs, "alone")
        for name in SETTINGS:
            rate = median(costs, name)
            bars = (times(rate, alone, 4, "alone", rate=True),) if name != "alone" else ()
            peers = {"Flask": median(costs, "Flask")} if name != "batching" and kind == JSON else {}
            self.report.add(
                Row(
                    work=f"64 at once, {_short(kind)}, {name}: throughput",
                    unit="requests/s",
                    ours=rate,
                    peers=peers,
                    bare={"alone": alone} if name != "alone" else {},
                    bars=bars,
                    more_is_better=True,
                )
            )

    def _latency(self, kind: str, costs: Mapping[str, list[tuple[float, ...]]]) -> None:
        if kind != JSON:
            return
        other = median(costs, "Flask", 1)
        for name in SETTINGS:
            mine = median(costs, name, 1)
            bars = (times(mine, other, 3, "Flask", rate=False),) if name != "alone" else ()
            self.report.add(
                Row(
                    work=f"64 at once, {_short(kind)}, {name}: 99th percentile",
                    unit="ms",
                    ours=_ms(mine),
                    peers={"Flask": _ms(other)},
                    bars=bars,
                )
            )

    def _turns(
        self, ways: Mapping[str, Callable[[], float | tuple[float, ...]]], title: str
    ) -> dict[str, list[tuple[float, ...]]]:
        """Take turns: one round to warm up, and those that count."""

        def run(way: str) -> tuple[float, ...]:
            found = ways[way]()
            return found if isinstance(found, tuple) else (found,)

        costs = take_part(tuple(ways), self.rounds + 1, run, self.report, title)
        return {way: found[1:] for way, found in costs.items()}

    def stopped(self, settings: Mapping[str, str], name: str) -> None:
        """Add rows of a stop under load: what failed, and how long it took."""
        content = body(self.images[:1], JSON)
        failed, seconds = [], []
        for _ in range(self.rounds):
            with self.up(settings) as server:
                assert server.serving is not None
                started = load.start(server.port, content, CONNECTIONS, 60)
                time.sleep(2)
                began = time.monotonic()
                server.serving.running.send(signal.SIGTERM)
                result = server.serving.running.wait(30)
                seconds.append(time.monotonic() - began)
                found = started.result()
                failed.append(found.failed)
                self._explain("SIGTERM", found)
                if result.status:
                    raise Failed(f"after SIGTERM the status was {result.status}")
        work = f"SIGTERM under load, {name}"
        self.report.add(
            Row(work=f"{work}: failed", unit="requests", ours=sum(failed), bars=(none(failed),)),
            Row(
                work=f"{work}: to the end",
                unit="s",
                ours=statistics.median(seconds),
                bars=(most(max(seconds), 10, "s"),),
            ),
        )

    def killed(self, settings: Mapping[str, str], name: str) -> None:
        """Add rows of a worker killed under load: what failed, and how long none answered."""
        content = body(self.images[:1], JSON)
        failed, held, back, start = [], [], [], []
        for _ in range(self.rounds):
            with self.up(settings) as server:
                assert server.serving is not None
                started = load.start(server.port, content, CONNECTIONS, 8 + server.ready_seconds)
                time.sleep(2)
                held.append(max(_gauge(server, "sm_runtime_under_way") for _ in range(50)))
                began = time.monotonic()
                os.kill(server.serving.workers()[0], signal.SIGKILL)
                found = started.result()
                failed.append(found.failed)
                back.append(found.gap[1] - began)
                start.append(server.ready_seconds)
                if failed[-1] > held[-1]:
                    self._explain("SIGKILL", found)
        work = f"kill -9 of the worker under load, {name}"
        limit = Bar(
            text="≤ those it held",
            got=", ".join(f"{a:.0f} of {b:.0f}" for a, b in zip(failed, held, strict=True)),
            met=all(a <= b for a, b in zip(failed, held, strict=True)),
        )
        again, ready = statistics.median(back), statistics.median(start)
        self.report.add(
            Row(work=f"{work}: failed", unit="requests", ours=max(failed), bars=(limit,)),
            Row(
                work=f"{work}: until it answers again",
                unit="s",
                ours=again,
                bare={"start of the server": ready},
                bars=(within(again, ready, 1, "start of the server"),),
            ),
        )

    def _explain(self, what: str, found: Load) -> None:
        if found.failed:
            self.report.remark(f"{what}: broken {found.broken}, {found.errors}")


def _short(kind: str) -> str:
    return "npy" if kind == NPY else "JSON"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def beyond_ms(mine: float | None, bare: float | None, limit: float) -> Bar:
    """Return the bar of milliseconds beyond the signature's call."""
    text = f"≤ signature's call + {limit:g} ms"
    if mine is None or bare is None:
        return Bar(text=text, got="-", met=False)
    more = (mine - bare) * 1e3
    return Bar(text=text, got=f"{more:+.2f} ms", met=more <= limit)


def none(failed: list[int]) -> Bar:
    """Return the bar that nothing fails."""
    return Bar(text="none", got=str(sum(failed)), met=not any(failed))


def most(value: float, limit: float, unit: str) -> Bar:
    """Return the bar that the worst round has to reach."""
    return Bar(
        text=f"each < {limit:g} {unit}", got=f"at most {value:.2f} {unit}", met=value < limit
    )


def _gauge(server: Served, name: str) -> float:
    assert server.serving is not None
    text = server.serving.get("/metrics").body.decode()
    match = re.search(rf"^{name}(?:\{{[^}}]*\}})? ([0-9.e+]+)$", text, re.MULTILINE)
    return float(match[1]) if match else 0.0


def _batches(server: Served) -> tuple[float, float]:
    """Return the rows of the batches that requests were part of, and the number of requests."""
    return tuple(_gauge(server, f"sm_runtime_batch_rows_{part}") for part in ("sum", "count"))  # type: ignore[return-value]


def main() -> int:
    """Print the lines of the table."""
    options = parser(__doc__ or "", rounds=5)
    options.add_argument("--model", required=True, type=Path, help="folder that holds 1/")
    options.add_argument("--data", required=True, type=Path, help="data.npz with images")
    args = options.parse_args()

    def run(report: Report) -> None:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            bench = Bench(report, args.rounds, args.model.resolve(), Path(folder), args.data)
            bare = Bare(bench.model, bench.file)
            stack.callback(bare.stop)
            servers = {name: stack.enter_context(bench.up(some)) for name, some in SETTINGS.items()}
            bench.one_client(bare, servers["alone"])
            peer = None
            try:
                peer = flask(bench.model)
                stack.callback(peer.stop)
            except (Failed, AssertionError) as error:
                report.remark(f"Flask is left out: {error}")
            bench.many_clients(servers, peer)
            stack.pop_all().close()
            for name in ("alone", "batching"):
                bench.stopped(SETTINGS[name], name)
                bench.killed(SETTINGS[name], name)

    return measured("serve", args, run)


if __name__ == "__main__":
    sys.exit(main())

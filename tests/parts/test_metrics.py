"""Metrics read by another process, and a host that is sampled."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from sm_runtime.job.model import Cluster, Job, Metric, Paths
from sm_runtime.metrics import HostSampler
from sm_runtime.metrics.reader import MetricsReader
from tests.harness import eventually

LOSS = Metric(name="loss", regex="loss=(.*)")


def job(folder: Path, *metrics: Metric) -> Job:
    cluster = Cluster(current_host="algo-1", hosts=("algo-1",))
    return Job(paths=Paths(str(folder)), cluster=cluster, metrics=metrics)


def test_lines_that_arrive_in_pieces_on_several_streams_are_whole(tmp_path: Path) -> None:
    reader = MetricsReader(job(tmp_path, LOSS), ["secret"])
    taps = [reader.tap(), reader.tap()]
    for number, piece in enumerate([b"loss=", b"loss=", b"1\nx\nlo", b"2 secret\n", b"ss=3"]):
        taps[number % 2](memoryview(piece))
    assert reader.finish(bool) == ["metric loss: 2 values, last 3, least 1, greatest 3"]
    found = [json.loads(line) for line in Path(reader.path).read_text().splitlines()]
    assert [(each["value"], each["line"]) for each in found] == [(1.0, "loss=1"), (3.0, "loss=3")]


def test_values_are_there_as_soon_as_their_lines_are(tmp_path: Path) -> None:
    reader = MetricsReader(job(tmp_path, LOSS), [])
    tap = reader.tap()
    tap(memoryview(b"loss=1\n"))
    path = Path(reader.path)
    eventually(lambda: path.exists() and path.read_text(), "a value")
    reader.finish(bool)


def test_a_reader_that_is_killed_costs_its_values_alone(tmp_path: Path) -> None:
    reader = MetricsReader(job(tmp_path, LOSS), [])
    reader._process.kill()
    reader.tap()(memoryview(b"loss=1\n"))
    assert reader.finish(bool) == ["metrics: the last lines could not be searched in time"]


def test_a_reader_that_has_died_holds_nothing_for_the_rest_of_the_job(tmp_path: Path) -> None:
    reader = MetricsReader(job(tmp_path, LOSS), [])
    tap = reader.tap()
    reader._process.kill()
    block = memoryview(bytes(1 << 20))
    eventually(lambda: tap(block) or reader._is_broken, "the pipe is broken")
    for _ in range(10):
        tap(block)
    assert reader._held_bytes == 0
    reader.finish(bool)


def test_a_stop_does_not_wait_for_a_reader_that_hangs(tmp_path: Path) -> None:
    reader = MetricsReader(job(tmp_path, LOSS), [])
    os.kill(reader.pid, signal.SIGSTOP)
    asked: list[bool] = []
    said = reader.finish(lambda: bool(asked.append(True) or len(asked) > 2))
    assert said == ["metrics: the last lines could not be searched in time"]
    assert len(asked) == 3, "asked no more when it had come"


def test_what_is_printed_at_pythons_start_is_no_summary(tmp_path: Path) -> None:
    reader = MetricsReader(job(tmp_path, LOSS), [])
    with reader._changed:
        reader._summary = b"a .pth file says hello\n[]\n"
    assert reader.finish(bool) == []


def test_a_host_is_sampled_with_rates_from_the_second_on(tmp_path: Path) -> None:
    sampler = HostSampler(job(tmp_path), seconds=0.15)
    sampler.start()
    path = Path(sampler.path)
    eventually(lambda: path.exists() and path.read_text().count("\n") >= 2, "two samples")
    [line] = sampler.finish()
    first, second, *_ = map(json.loads, path.read_text().splitlines())
    assert {"memory_bytes", "disk_free_bytes", "cpus"} <= set(first)
    assert "cpu_percent" not in first and second["cpu_percent"] >= 0
    assert line.startswith("host: CPU ") and "memory " in line

"""The report of a job, from the files that it has left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sm_runtime.job.errors import ConfigError
from sm_runtime.job.failure import Failure
from sm_runtime.job.model import Channel, Cluster, Job, Paths, Source
from sm_runtime.metrics import report
from sm_runtime.output import outcome
from sm_runtime.output.outcome import Timeline

FAILURE = Failure(
    name="KeyError", message="a <b>", phase="train", status=1, host="algo-2", rank=3,
    last_lines=("Traceback", "KeyError: a <b> s3cr3t"),
)  # fmt: skip


def hide(text: str) -> str:
    return text.replace("s3cr3t", "***").replace("4711", "***")


def recorded(folder: Path, failure: Failure | None = None, **fields: Any) -> Paths:
    paths = Paths(str(folder))
    hosts = ("algo-1", "algo-2")
    job = Job(paths=paths, cluster=Cluster(current_host="algo-1", hosts=hosts), **fields)
    timeline = Timeline()
    for name in ("config", "train", "train"):
        with timeline.phase(name):
            pass
    outcome.describe(
        job, kind="mpi", hosts=hosts, processes_per_host=2, timeline=timeline, failure=failure,
        saved=["model: 1 file"], mask=hide,
    )  # fmt: skip
    return paths


def lines(paths: Paths, name: str, *objects: dict[str, Any]) -> None:
    text = "".join(json.dumps(each) + "\n" for each in objects)
    Path(paths.under("output", "metrics", name)).write_text(text + '{"cut')


def test_it_shows_what_there_is(tmp_path: Path) -> None:
    channel = Channel(name="train", path="/x", source=Source(uri="s3://b/train"))
    paths = recorded(
        tmp_path, FAILURE, name="job-1", channels=(channel,), hyperparameters={"a": 1, "k": 4711}
    )
    values = [{"name": "loss", "value": 1 / n, "time": n, "host": "algo-1"} for n in (1, 2, 3)]
    lines(paths, "script.jsonl", *values)
    gpus = [{"percent": 50, "memory_bytes": 1 << 30, "limit_bytes": 1 << 34}]
    sample = {"host": "algo-1", "cpu_percent": 5.0, "memory_bytes": 1 << 30, "gpus": gpus}
    lines(paths, "host.jsonl", *({"time": 5.0 * n, **sample} for n in range(1000)))
    text = report.html(paths)
    assert "KeyError: a &lt;b&gt; ***" in text and "a <b>" not in text
    assert "s3cr3t" not in text and "4711" not in text
    for part in ("job-1", "Phases", "loss", "CPU (%)", "GPU memory (MiB)", "algo-2", "2, 3"):
        assert part in text
    assert "failed first" in text and "s3://b/train" in text and "model: 1 file" in text
    assert "<script" not in text and "http://" not in text.replace("http://www.w3.org/", "")
    assert len(text) < 400_000, "points that cannot be told apart are left out"


def test_a_job_without_anything_has_one(tmp_path: Path) -> None:
    paths = recorded(tmp_path)
    target = report.write(paths)
    text = Path(target).read_text()
    assert "A job without a name" in text and "success" in text
    assert "Metrics" not in text and "Failure" not in text
    assert not Path(target + ".part").exists()


def test_where_no_job_has_ended_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"job\.json: does not exist: no job has ended here"):
        report.html(Paths(str(tmp_path)))
    paths = recorded(tmp_path)
    Path(paths.under("output", "metrics", "job.json")).write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        report.html(paths)


HARD = {
    "nearly equal": [0.1 + 0.2, 0.3],
    "equal": [0.5, 0.5],
    "zero": [0.0, 0.0],
    "not finite": ["nan", 1.0, "inf"],
    "nothing finite": ["nan"],
    "huge": [-1e308, 1e308],
    "tiny": [1e-320, 2e-320],
}


@pytest.mark.parametrize("values", HARD.values(), ids=HARD)
def test_no_value_costs_the_report(tmp_path: Path, values: list[Any]) -> None:
    paths = recorded(tmp_path)
    found = [{"name": "loss", "value": value, "time": 1, "host": "a"} for value in values]
    lines(paths, "script.jsonl", *found)
    assert f"<td>{len(values)}</td>" in report.html(paths)


def test_a_curve_keeps_what_can_be_told_apart() -> None:
    curve = report._Curve()
    for number in range(100_000):
        curve.add(None, float(number))
    assert report.POINTS <= len(curve.points) <= 2 * report.POINTS
    assert curve.points[0] == (0, 0.0) and curve.points[-1][0] > 99_000
    assert (curve.count, curve.last, curve.least, curve.greatest) == (100_000, 99_999, 0, 99_999)

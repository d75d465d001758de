"""Metrics that are read off the script's output, and what is sampled of its host."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from tests.harness import Base
from tests.hosts import Cluster

SLOW = {"Name": "slow", "Regex": "(?:a+)+=([0-9])"}
LOSS = {"Name": "loss", "Regex": " loss: ([0-9\\.]+)"}
ACCURACY = {"Name": "accuracy", "Regex": "^acc=(.*)$"}
SCRIPT = """
import sys
print("epoch 1 - loss: 0.50 - val_loss: 9", flush=True)
print("acc=0.1", file=sys.stderr, flush=True)
print("epoch 2 - loss: 0.25 and hf_abcdefghijklmnopqrstuvwxyzabcdefgh")
print("acc=0.2", end="")
"""


def job(base: Base, *definitions: dict[str, str], **more: Any) -> Base:
    base.write(
        "input/config/job.json",
        {
            "TrainingJobName": "job-1",
            "AlgorithmSpecification": {"MetricDefinitions": list(definitions)},
            "OutputDataConfig": {"S3OutputPath": f"file://{base.root}/store"},
            **more,
        },
    )
    return base


def values(base: Base) -> list[dict[str, Any]]:
    lines = base.path("output/metrics/script.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_values_of_both_streams_are_kept_with_their_lines_and_summed_up(base: Base) -> None:
    result = job(base, LOSS, ACCURACY, {"Name": "none", "Regex": "x=(.)"}).script(SCRIPT).run()
    assert result.status == 0, result.log
    found = sorted((each["name"], each["value"], each["line"]) for each in values(base))
    assert found == [
        ("accuracy", 0.1, "acc=0.1"),
        ("accuracy", 0.2, "acc=0.2"),
        ("loss", 0.25, "epoch 2 - loss: 0.25 and ***"),
        ("loss", 0.5, "epoch 1 - loss: 0.50 - val_loss: 9"),
    ]
    assert {each["host"] for each in values(base)} == {os.uname().nodename}
    assert all(1.6e9 < each["time"] < 4e9 for each in values(base))
    assert "metric loss: 2 values, last 0.25, least 0.25, greatest 0.5\n" in result.log
    assert "metric accuracy: 2 values, last 0.2, least 0.1, greatest 0.2\n" in result.log
    assert "metric none: no line matched\n" in result.log


def test_the_output_is_as_it_was(base: Base) -> None:
    result = job(base, LOSS).script("print('a loss: 1\\r\\x00b'); print('c', end='')").run()
    assert result.out == b"a loss: 1\r\x00b\nc"


def test_an_expression_that_is_slow_on_purpose_costs_the_job_nothing(base: Base) -> None:
    line = "a" * 80 + "!="
    result = (
        job(base, SLOW, LOSS)
        .script(f"for i in range(50): print('{line}'); print(' loss: 1')")
        .run()
    )
    assert result.status == 0, result.log
    assert "metric slow: no line matched; its regular expression is too slow" in result.log
    assert len([each for each in values(base) if each["name"] == "loss"]) == 50


def test_a_stop_does_not_wait_for_what_is_slow(base: Base) -> None:
    script = "import time\nfor i in range(50): print('a' * 80 + '!=')\n"
    script += "print('ready', flush=True)\ntime.sleep(60)"
    running = job(base, SLOW).script(script).start()
    running.ready()
    running.send(signal.SIGTERM)
    result = running.wait()
    assert result.status == 143
    assert "asked the script to stop" in result.log


def test_ranks_count_without_what_their_lines_begin_with(cluster: Cluster) -> None:
    for base in cluster.bases:
        job(base, ACCURACY, ResourceConfig={"InstanceCount": 2}).hyperparameters(
            sagemaker_mpi_enabled="true", sagemaker_mpi_num_of_processes_per_host="2"
        )
        base.script("import os; print('acc=' + os.environ['OMPI_COMM_WORLD_RANK'], flush=True)")
        base.environ.pop("SM_RUNTIME_LAUNCHER", None)
    cluster.start().wait()
    found = [{each["value"] for each in values(base)} for base in cluster.bases]
    assert found == [{0.0, 1.0}, {2.0, 3.0}]


LONG = "import time; b = bytearray(100 << 20); time.sleep(6.5)"
LEVELS = {"memory_bytes", "memory_limit_bytes", "disk_used_bytes", "disk_free_bytes", "cpus"}


def test_the_host_is_sampled_and_the_log_has_means_and_peaks(tmp_path: Path) -> None:
    bases = {on: Base(tmp_path / on) for on in ("1", "0")}
    jobs = {on: base.script(LONG).start(SM_RUNTIME_HOST_METRICS=on) for on, base in bases.items()}
    for on, base in bases.items():
        result = jobs[on].wait()
        assert result.status == 0, result.log
        path = base.path("output/metrics/host.jsonl")
        assert path.exists() == (" host: " in result.log.replace("INFO   ", "")) == (on == "1")
        if on == "1":
            [sample] = map(json.loads, path.read_text().splitlines())
            assert set(sample) >= LEVELS
            assert sample["memory_bytes"] > 100 << 20
            assert "(peak" in result.log


def test_a_short_job_has_no_samples_and_loads_nothing_for_them(base: Base) -> None:
    assert base.script("pass").run().status == 0
    assert not base.path("output/metrics/host.jsonl").exists()

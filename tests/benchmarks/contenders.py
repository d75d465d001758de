"""Runs one script bare, under sagemaker-training and under this runtime, in turns, and compares.

Measures are taken around the whole command: seconds from its start to its end, and the most memory
that any one of its processes had (``ru_maxrss``: the process and all that it waited for).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tests.benchmarks.report import Bar, Failed, Report, Row, take_part, timed

FRAMEWORK = """
from sagemaker_training import entry_point, environment


def main():
    env = environment.Environment()
    entry_point.run(
        uri=env.module_dir,
        user_entry_point=env.user_entry_point,
        args=env.to_cmd_args(),
        env_vars=env.to_env_vars(),
        capture_error=True,
    )
"""
"""The part of a framework's image that starts the script, as TensorFlow's toolkit does it."""

NAMES = {
    "bare": "bare",
    "peer": "sagemaker-training",
    "framework": "sagemaker-training (framework)",
    "ours": "ours",
}
"""The framework path is how TensorFlow's image runs a script."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one run took."""

    seconds: float
    mebibytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A way to run the script of a base folder."""

    name: str
    argv: tuple[str, ...]
    environ: dict[str, str]


def contenders(folder: str, ours: str, peer: str, script: str) -> dict[str, Contender]:
    """Return the four ways to run ``script``; each gets a base folder of its own in ``folder``."""
    common = {
        "PATH": os.environ["PATH"],
        "HOME": folder,
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",  # as the reference images set it
        "PYTHONPATH": folder,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with open(os.path.join(folder, "bench_framework.py"), "w") as file:
        file.write(FRAMEWORK)
    found = {}
    for name, program, module in (
        ("bare", os.path.join(ours, "bin", "python"), ""),
        ("peer", os.path.join(peer, "bin", "train"), ""),
        ("framework", os.path.join(peer, "bin", "train"), "bench_framework:main"),
        ("ours", os.path.join(ours, "bin", "train"), ""),
    ):
        base = os.path.join(folder, name)
        path = _job(base, script)
        environ = {**common, "SAGEMAKER_BASE_DIR": base}
        if module:
            environ["SAGEMAKER_TRAINING_MODULE"] = module
        argv = (program, path) if name == "bare" else (program,)
        found[name] = Contender(name=name, argv=argv, environ=environ)
    return found


def _job(base: str, script: str) -> str:
    """Write what a platform gives to a job with one host; return the path of its script."""
    code, config = os.path.join(base, "code"), os.path.join(base, "input", "config")
    for path in (code, config, os.path.join(base, "model"), os.path.join(base, "output", "data")):
        os.makedirs(path, exist_ok=True)
    program = os.path.join(code, "script.py")
    with open(program, "w") as file:
        file.write(script)
    for name, content in (
        ("hyperparameters", {"sagemaker_program": '"script.py"'}),
        ("resourceconfig", {"current_host": "localhost", "hosts": ["localhost"]}),
        ("inputdataconfig", {}),
    ):
        with open(os.path.join(config, f"{name}.json"), "w") as file:
            json.dump(content, file)
    return program


def run(contender: Contender) -> Cost:
    """Run it once, its output into a pipe that ``cat`` reads, as a container engine does."""
    output = os.path.join(contender.environ["SAGEMAKER_BASE_DIR"], "output")
    if not os.access(contender.argv[0], os.X_OK):
        raise Failed("it is not installed")
    success, peak = os.path.join(output, "success"), os.path.join(output, "peak")
    if os.path.exists(success):
        os.unlink(success)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as reader:
        began = time.perf_counter()
        process = subprocess.run(
            # Between us and it, as a process starts with the peak memory of the one it comes from.
            [*timed(peak), *contender.argv],
            check=False,
            env=contender.environ,
            stdin=subprocess.DEVNULL,
            stdout=reader.stdin,
            stderr=reader.stdin,
        )
        seconds = time.perf_counter() - began
    # The peer can end with 0 although it never started the script: only the file tells.
    if process.returncode or (contender.name != "bare" and not os.path.exists(success)):
        raise Failed(f"status {process.returncode}: {_failure(output)}")
    with open(peak) as file:
        return Cost(seconds=seconds, mebibytes=int(file.read()) / 1024)


def _failure(output: str) -> str:
    try:
        with open(os.path.join(output, "failure")) as file:
            return file.readline().strip()
    except OSError:
        return "no failure file"


def compare(
    ways: Mapping[str, Contender], rounds: int, report: Report, title: str
) -> dict[str, Cost]:
    """Run all in turns, one round to warm up and ``rounds`` that count; return the medians."""

    def cost(name: str) -> tuple[float, float]:
        found = run(ways[name])
        return found.seconds, found.mebibytes

    costs = take_part(tuple(ways), rounds + 1, cost, report, title)
    return {
        name: Cost(
            seconds=statistics.median(seconds for seconds, _ in some[1:]),
            mebibytes=statistics.median(mebibytes for _, mebibytes in some[1:]),
        )
        for name, some in costs.items()
    }


def row(
    work: str,
    unit: str,
    costs: Mapping[str, Cost],
    bars: tuple[Bar, ...] = (),
    notes: Mapping[str, str] | None = None,
) -> Row:
    """Return one line of the table, of the seconds or of the MiB."""

    def value(name: str) -> float | None:
        cost = costs.get(name)
        return None if cost is None else cost.seconds if unit == "s" else cost.mebibytes

    return Row(
        work=work,
        unit=unit,
        ours=value("ours"),
        peers={NAMES[name]: value(name) for name in ("peer", "framework")},
        bare={"bare": value("bare")},
        bars=bars,
        notes={NAMES[name]: text for name, text in (notes or {}).items()},
    )


def seconds(costs: Mapping[str, Cost], name: str) -> float | None:
    """Return what a way took, if it took part."""
    return costs[name].seconds if name in costs else None


def mebibytes(costs: Mapping[str, Cost], name: str) -> float | None:
    """Return the memory of a way, if it took part."""
    return costs[name].mebibytes if name in costs else None

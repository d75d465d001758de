"""Runs one script bare, under sagemaker-training and under this runtime, in turns, and compares.

Measures are taken around the whole command: seconds from its start to its end, and the most memory
that any one of its processes had (``ru_maxrss``: the process and all that it waited for).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

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

HEADER = """\
| measure | bare | peer | peer, framework path | ours | ours - bare | ours / bare | peer / ours |
| --- | --- | --- | --- | --- | --- | --- | --- |"""
"""The last ratio takes the peer's framework path, which is how TensorFlow's image runs it."""


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
    success, peak = os.path.join(output, "success"), os.path.join(output, "peak")
    if os.path.exists(success):
        os.unlink(success)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as reader:
        began = time.perf_counter()
        process = subprocess.run(
            # Between us and it, as a process starts with the peak memory of the one it comes from.
            ["/usr/bin/time", "--quiet", "--format=%M", f"--output={peak}", *contender.argv],
            check=False,
            env=contender.environ,
            stdin=subprocess.DEVNULL,
            stdout=reader.stdin,
            stderr=reader.stdin,
        )
        seconds = time.perf_counter() - began
    # The peer can end with 0 although it never started the script: only the file tells.
    if process.returncode or (contender.name != "bare" and not os.path.exists(success)):
        raise SystemExit(f"{contender.name} failed with {process.returncode}: see {output}/failure")
    with open(peak) as file:
        return Cost(seconds=seconds, mebibytes=int(file.read()) / 1024)


def compare(ways: Sequence[Contender], rounds: int) -> dict[str, Cost]:
    """Run all in turns, one round to warm up and ``rounds`` that count; return the medians."""
    costs: dict[str, list[Cost]] = {way.name: [] for way in ways}
    for number in range(rounds + 1):
        for way in ways:
            cost = run(way)
            if number:
                costs[way.name].append(cost)
    return {
        name: Cost(
            seconds=statistics.median(cost.seconds for cost in some),
            mebibytes=statistics.median(cost.mebibytes for cost in some),
        )
        for name, some in costs.items()
    }


def row(measure: str, values: dict[str, float], unit: str, notes: dict[str, str]) -> str:
    """Return one line of the table; a way with a note did other work, so it gets no ratio."""
    digits = 3 if unit == "s" else 1
    cells = [
        f"{values[name]:.{digits}f} {unit}{notes.get(name, '')}"
        for name in ("bare", "peer", "framework", "ours")
    ]
    bare, ours = values["bare"], values["ours"]
    cells += [f"{ours - bare:+.{digits}f} {unit}", f"{ours / bare:.2f}"]
    cells.append("" if "framework" in notes else f"{values['framework'] / ours:.1f}")
    return f"| {' | '.join([measure, *cells])} |"


def rows(measure: str, costs: dict[str, Cost], notes: dict[str, str] | None = None) -> str:
    """Return two lines of the table: time and memory."""
    seconds = {name: cost.seconds for name, cost in costs.items()}
    mebibytes = {name: cost.mebibytes for name, cost in costs.items()}
    return "\n".join(
        (
            row(f"{measure}: time", seconds, "s", notes or {}),
            row(f"{measure}: peak memory", mebibytes, "MiB", notes or {}),
        )
    )


def options(description: str, rounds: int) -> argparse.Namespace:
    """Return the options that each benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--ours", required=True, help="virtual environment with sm-runtime")
    parser.add_argument("--peer", required=True, help="virtual environment with sagemaker-training")
    parser.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    return parser.parse_args()

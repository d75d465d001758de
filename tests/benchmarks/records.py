"""Turns the table that ``tests.benchmarks.dataset`` prints into rows of ours.

It runs by itself, with another Python where ``--op`` names a virtual environment that has the C++
op, for which there is no wheel for the Python that everything else runs with.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.report import Failed, Report, Row, measured, parser, times

OURS, FILE, OP = "PipeModeDataset", "TFRecordDataset on a file", "C++ op"
FIND = """
import importlib.util, json, sys
sys.path = [path for path in sys.path if path]
spec = importlib.util.find_spec("sagemaker_tensorflow")
print(json.dumps(list(spec.submodule_search_locations) if spec else []))
"""
SECONDS = 580.0


def op_folder(python: str) -> str:
    """Return the folder of the C++ op's package in another Python's environment, or nothing."""
    done = subprocess.run(
        (python, "-I", "-c", FIND), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    folders: list[str] = json.loads(done.stdout or b"[]")
    return folders[0] if folders else ""


def table(python: str, op: str, rounds: int) -> list[str]:
    """Return the lines that the benchmark prints."""
    words = [python, "-m", "tests.benchmarks.dataset", "--rounds", str(rounds)]
    done = subprocess.run(
        [*words, *(("--op", op) if op else ())],
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise Failed(lines[-1][:300] if lines else f"status {done.returncode}")
    return done.stdout.decode().splitlines()


def speeds(lines: list[str]) -> dict[str, dict[str, float]]:
    """Return MB/s by size of record and by way of reading."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if "|" in line]
    found: dict[str, dict[str, float]] = {}
    for place, head in enumerate(rows[0]):
        size, is_speed, _ = head.partition(": MB/s")
        if is_speed:
            found[size] = {
                row[0].strip("`"): float(match[0])
                for row in rows[1:]
                if (match := re.match(r"[\d.]+", row[place]))
            }
    return found


def compare(report: Report, python: str, op: str, rounds: int) -> None:
    """Add a row for each size of records."""
    lines = table(python, op, rounds)
    # The first line tells the versions.
    versions = next(
        (", ".join(line.split(", ")[:2]) for line in lines if "TensorFlow " in line), ""
    )
    report.remark(f"dataset: {versions}")
    for size, found in speeds(lines).items():
        peers = {
            name: found.get(name) for name in (OP, *(n for n in found if n not in (OURS, FILE, OP)))
        }
        bar = times(found.get(OURS), found.get(OP), 1.3, OP, rate=True)
        report.add(
            Row(
                work=f"TFRecords of {size} from a FIFO, `PipeModeDataset`",
                unit="MB/s",
                ours=found.get(OURS),
                peers=peers,
                bare={FILE: found.get(FILE)},
                bars=(bar,),
                more_is_better=True,
            )
        )


def main() -> int:
    """Print the rows."""
    made = parser(__doc__ or "", rounds=3)
    made.add_argument("--op", default="", help="virtual environment with the C++ op")
    args = made.parse_args()

    def run(report: Report) -> None:
        python = str(Path(args.op, "bin", "python").absolute()) if args.op else sys.executable
        op = op_folder(python) if args.op else ""
        if not op:
            python = sys.executable
            report.remark("dataset: the C++ op is not installed")
        compare(report, python, op, args.rounds)

    return measured("dataset", args, run)


if __name__ == "__main__":
    sys.exit(main())

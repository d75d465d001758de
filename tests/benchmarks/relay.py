"""Measures 1,000,000 lines of output (108 MB), as ``print`` writes them and in blocks.

After a line that looks like an error sagemaker-training compares each line with all before it,
which would take it an hour; so it gets fewer lines there.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

from tests.benchmarks.contenders import Cost, compare, contenders, row, seconds
from tests.benchmarks.report import Report, measured, parser, within

LINES = 1_000_000
FEWER = 40_000
PRINT = """
print({first!r})
for number in range({lines}):
    print(f"step {{number:>8}} ".ljust(107, "x"))
"""
BLOCKS = """
import sys
print({first!r})
for start in range(0, {lines}, 1000):
    lines = [f"step {{number:>8}} ".ljust(107, "x") for number in range(start, start + 1000)]
    sys.stdout.buffer.write(("\\n".join(lines) + "\\n").encode())
"""
METRICS = 10
WITH_METRICS = """
for number in range({lines}):
    value = f"metric{{number // 1000 % 10}}: 0.5 " if number % 1000 == 0 else ""
    print(f"step {{number:>8}} {{value}}".ljust(107, "x"))
"""


def measure(ours: str, peer: str, rounds: int, script: str, error: bool, report: Report) -> None:
    """Add the lines of the table for one kind of script."""
    first = "ValueError: nothing is wrong" if error else "start"
    kind = "printed" if script is PRINT else "in blocks"
    work = f"{LINES:,} lines {kind}{', after a `ValueError` line' if error else ''}"
    peers = ("peer", "framework")
    costs: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory() as folder:
        ways = contenders(folder, ours, peer, script.format(first=first, lines=LINES))
        some = {name: way for name, way in ways.items() if not (error and name in peers)}
        costs.update(compare(some, rounds, report, work))
    notes: dict[str, str] = {}
    if error:
        with tempfile.TemporaryDirectory() as folder:
            ways = contenders(folder, ours, peer, script.format(first=first, lines=FEWER))
            costs.update(compare({name: ways[name] for name in peers}, 1, report, work))
        notes = dict.fromkeys(peers, f"{FEWER:,} lines")
    bar = within(seconds(costs, "ours"), seconds(costs, "bare"), 1.2, "bare")
    report.add(
        row(f"{work}: time", "s", costs, (bar,), notes),
        row(f"{work}: peak memory", "MiB", costs, (), notes),
    )


def measure_metrics(ours: str, peer: str, rounds: int, report: Report) -> None:
    """Add the line for the same output with ten metrics: one value in a thousand lines."""
    work = f"{LINES:,} lines printed, ten metrics"
    names = [f"metric{number}" for number in range(METRICS)]
    definitions = [{"Name": name, "Regex": f" {name}: ([0-9.]+)"} for name in names]
    with tempfile.TemporaryDirectory() as folder:
        ways = contenders(folder, ours, peer, WITH_METRICS.format(lines=LINES))
        base = ways["ours"].environ["SAGEMAKER_BASE_DIR"]
        with open(os.path.join(base, "input", "config", "job.json"), "w") as file:
            json.dump(
                {
                    "TrainingJobName": "bench",
                    "AlgorithmSpecification": {"MetricDefinitions": definitions},
                },
                file,
            )
        costs = compare({name: ways[name] for name in ("bare", "ours")}, rounds, report, work)
    bar = within(seconds(costs, "ours"), seconds(costs, "bare"), 1.5, "bare")
    report.add(row(f"{work}: time", "s", costs, (bar,), {}))


def main() -> int:
    """Print the lines of the table."""
    args = parser(__doc__ or "", rounds=3).parse_args()

    def run(report: Report) -> None:
        for script, error in ((PRINT, False), (BLOCKS, False), (PRINT, True)):
            measure(args.ours, args.peer, args.rounds, script, error, report)
        measure_metrics(args.ours, args.peer, args.rounds, report)

    return measured("relay", args, run)


if __name__ == "__main__":
    sys.exit(main())

"""Measures a job that does nothing, from entry point to exit, TensorFlow installed beside it."""

from __future__ import annotations

import sys
import tempfile

from tests.benchmarks.contenders import compare, contenders, mebibytes, row, seconds
from tests.benchmarks.report import Report, at_most, beyond, measured, parser

WORK = "a job that does nothing"


def main() -> int:
    """Print two lines of the table."""
    args = parser(__doc__ or "", rounds=11).parse_args()

    def run(report: Report) -> None:
        with tempfile.TemporaryDirectory() as folder:
            ways = contenders(folder, args.ours, args.peer, "pass\n")
            costs = compare(ways, args.rounds, report, WORK)
        bar = beyond(seconds(costs, "ours"), seconds(costs, "bare"), 0.10, "bare")
        report.add(row(f"{WORK}: time", "s", costs, (bar,)))
        bar = at_most(mebibytes(costs, "ours"), 40, "MiB")
        report.add(row(f"{WORK}: peak memory", "MiB", costs, (bar,)))

    return measured("startup", args, run)


if __name__ == "__main__":
    sys.exit(main())

"""Sends 100,000 hostile requests to ``serve``, slow clients beside, and counts what goes wrong.

They are those of tests/hostile.py, which a test sends fewer of: half of them to one request at a
time, half to batches.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.benchmarks.report import Bar, Report, Row, measured, parser
from tests.benchmarks.serve_ways import Served, mebibytes, ours
from tests.hostile import Outcome, images, run

REQUESTS = 100_000
FIRST = 2000
"""What is sent before memory is looked at."""
MOST_MEBIBYTES = 100
SETTINGS = {"alone": "false", "batching": "true"}


def none(got: int) -> Bar:
    """Return the bar that something does not happen."""
    return Bar(text="none", got=str(got), met=got == 0)


def add(report: Report, name: str, found: Outcome, died: int, unpickled: int, more: float) -> None:
    """Add the rows of one server."""
    work = f"{found.requests:,} hostile requests, {name}"
    answered = sum(found.statuses.values()) - found.statuses["closed"]
    counts = {
        "without status": len(found.unanswered),
        "status 500 or more": len(found.failures),
        "processes that died": died,
        "unpickled": unpickled,
    }
    report.add(Row(work=f"{work}: answered with a status", unit="requests", ours=answered))
    for what, count in counts.items():
        report.add(
            Row(work=f"{work}: {what}", unit="requests", ours=count, bars=(none(count),)),
        )
    limit = Bar(text=f"≤ {MOST_MEBIBYTES} MiB", got=f"{more:+.0f} MiB", met=more <= MOST_MEBIBYTES)
    report.add(
        Row(work=f"{work}: memory more than at first", unit="MiB", ours=more, bars=(limit,)),
        Row(work=f"{work}: slowest answer", unit="s", ours=found.slowest),
    )
    report.remark(f"{name}: {dict(sorted(found.statuses.items()))}")
    for request in found.unanswered:
        report.remark(f"{name}: no status: {request[:300]!r}")
    for request, answer in found.failures:
        report.remark(f"{name}: {answer[:200]!r}: {request[:300]!r}")


def survive(report: Report, name: str, server: Served, count: int, folder: Path) -> None:
    """Send all, and see what has changed."""
    assert server.serving is not None
    mark = folder / f"unpickled by {name}"
    valid = images((28, 28, 1), mark)
    workers = server.serving.workers()
    right = server.serving.ask(body=valid.texts[0])
    run(server.port, valid, FIRST, seed=1)
    before = mebibytes(server.pid)
    found = run(server.port, valid, count)
    after = server.serving.workers()
    died = len(set(workers) - set(after)) + (server.serving.running.process.poll() is not None)
    add(report, name, found, died, int(mark.exists()), mebibytes(server.pid) - before)
    if server.serving.ask(body=valid.texts[0]).body != right.body:
        report.remark(f"{name}: a good request is answered otherwise than before")


def main() -> int:
    """Print the lines of the table."""
    options = parser(__doc__ or "", rounds=1)
    options.add_argument("--model", required=True, type=Path, help="folder that holds 1/")
    options.add_argument("--count", type=int, default=REQUESTS, help="default: %(default)s")
    args = options.parse_args()

    def run_all(report: Report) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, batching in SETTINGS.items():
                settings = {"SAGEMAKER_TFS_ENABLE_BATCHING": batching}
                server = ours(Path(folder, name), args.model.resolve(), settings)
                try:
                    survive(report, name, server, args.count // 2, Path(folder))
                finally:
                    server.stop()

    return measured("hostile", args, run_all)


if __name__ == "__main__":
    sys.exit(main())

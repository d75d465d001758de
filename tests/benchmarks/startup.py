"""Measures a job that does nothing, from entry point to exit, TensorFlow installed beside it."""

from __future__ import annotations

import tempfile

from tests.benchmarks.contenders import compare, contenders, options, rows


def main() -> None:
    """Print two lines of the table."""
    args = options(__doc__ or "", rounds=11)
    with tempfile.TemporaryDirectory() as folder:
        ways = contenders(folder, args.ours, args.peer, "pass\n")
        print(rows("a job that does nothing", compare(tuple(ways.values()), args.rounds)))


if __name__ == "__main__":
    main()

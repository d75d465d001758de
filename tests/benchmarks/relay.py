"""Measures 1,000,000 lines of output (108 MB), as ``print`` writes them and in blocks.

After a line that looks like an error sagemaker-training compares each line with all before it,
which would take it an hour; so it gets fewer lines there.
"""

from __future__ import annotations

import tempfile

from tests.benchmarks.contenders import Cost, compare, contenders, options, rows

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


def measure(args_ours: str, args_peer: str, rounds: int, script: str, error: bool) -> str:
    """Return the lines of the table for one kind of script."""
    first = "ValueError: nothing is wrong" if error else "start"
    peers = ("peer", "framework")
    costs: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory() as folder:
        text = script.format(first=first, lines=LINES)
        ways = contenders(folder, args_ours, args_peer, text)
        some = [way for name, way in ways.items() if not (error and name in peers)]
        costs.update(compare(some, rounds))
    notes: dict[str, str] = {}
    if error:
        with tempfile.TemporaryDirectory() as folder:
            text = script.format(first=first, lines=FEWER)
            ways = contenders(folder, args_ours, args_peer, text)
            costs.update(compare([ways[name] for name in peers], 1))
        notes = dict.fromkeys(peers, f" ({FEWER:,} lines)")
    kind = "printed" if script is PRINT else "in blocks"
    return rows(
        f"{LINES:,} lines {kind}{', after a `ValueError` line' if error else ''}", costs, notes
    )


def main() -> None:
    """Print the lines of the table."""
    args = options((__doc__ or "").splitlines()[0], rounds=3)
    for script, error in ((PRINT, False), (BLOCKS, False), (PRINT, True)):
        print(measure(args.ours, args.peer, args.rounds, script, error), flush=True)


if __name__ == "__main__":
    main()

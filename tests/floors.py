"""The least of each room that the tests of units and parts may run, in percent of its lines.

    coverage run -m pytest tests/unit tests/parts
    coverage combine && coverage json -o build/coverage.json && python -m tests.floors

A floor is a few points below what is measured: one that is missed names lines without a test.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

FLOORS = {
    "channels": 82,
    "cluster": 60,
    "code": 90,
    "contract": 94,
    "export": 95,
    "install": 40,
    "job": 95,
    "launch": 95,
    "metrics": 70,
    "output": 86,
    "processes": 66,
    "serving": 55,
    "storage": 79,
    "sync": 88,
}
MEASURED = Path(__file__).parents[1] / "build/coverage.json"


def measured() -> dict[str, float]:
    """Return the percentage of each room's lines that were run."""
    lines, run = Counter[str](), Counter[str]()
    for name, found in json.loads(MEASURED.read_text())["files"].items():
        room = Path(name).parts[Path(name).parts.index("sm_runtime") + 1]
        lines[room] += found["summary"]["num_statements"]
        run[room] += found["summary"]["covered_lines"]
    return {room: 100 * run[room] / count for room, count in lines.items() if count}


def main() -> int:
    """Print what is measured; return 1 if that is less than a floor."""
    found = measured()
    low = [room for room, floor in FLOORS.items() if found.get(room, 0.0) < floor]
    for room, percent in sorted(found.items()):
        print(f"{room:12} {percent:5.1f} %  floor {FLOORS.get(room, '-')}")
    for room in low:
        print(f"{room}: the tests of units and parts run fewer of its lines than {FLOORS[room]} %")
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())

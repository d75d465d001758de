"""Writes what the benchmarks have kept: a summary, and the tables and plots of the documents."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from tests.benchmarks import growth
from tests.benchmarks.report import HEADER, Bar, Row, line, number

NAMES = (
    "startup",
    "relay",
    "pack",
    "objects",
    "pipe",
    "dataset",
    "upload",
    "mpi",
    "hosts",
    "serve",
    "hostile",
)
BEGIN, END = (
    "<!-- written by scripts/bench docs -->",
    "<!-- end of what scripts/bench docs wrote -->",
)
TITLES = {
    "startup": "A job that does nothing",
    "relay": "The log",
    "pack": "Packing",
    "objects": "Objects from S3",
    "pipe": "Pipe mode",
    "dataset": "PipeModeDataset",
    "upload": "The model to S3",
    "mpi": "MPI",
    "hosts": "Jobs of many hosts",
    "serve": "Serving",
    "hostile": "Hostile requests",
}
UNPLOTTED = ("sagemaker-training", "boto3 `get_object`, 10 threads", "a generator")
UNPLOTTED_WORK = ("blocks", "after a", "isal", "NONE", "64 x", "moto", "keys listed")
"""Parts of the names of rows that would make the plot longer and tell little more."""
PLOTTED = ("startup", "relay", "pack", "objects", "pipe", "dataset", "upload", "mpi")
"""Whose rows the plot has."""
GROWTH = "benchmarks-hosts.svg"
"""The plot of what is measured with several numbers of hosts."""
WIDTH, LEFT, RIGHT, BAR, GAP = 760, 250, 110, 12, 16


def load(folder: Path, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return what was kept, with rows as ``Row``."""
    found = []
    for name in names:
        path = folder / f"{name}.json"
        if path.exists():
            kept = json.loads(path.read_text())
            kept["rows"] = [
                Row(**{**row, "bars": tuple(Bar(**bar) for bar in row["bars"])})
                for row in kept["rows"]
            ]
            found.append(kept)
    return found


def summary(kept: list[dict[str, Any]]) -> str:
    """Return which bars were missed, and what was left out."""
    pairs = [(row, bar) for one in kept for row in one["rows"] for bar in row.bars]
    missed = [f"missed: {row.title}: {bar.text}: {bar.got}" for row, bar in pairs if not bar.met]
    remarks = [remark for one in kept for remark in one["remarks"]]
    head = f"{len(pairs) - len(missed)} of {len(pairs)} bars are met"
    return "\n".join(("", head, *missed, *remarks))


def tables(kept: list[dict[str, Any]]) -> dict[str, str]:
    """Return the parts of the document, by title."""
    found = {}
    for one in kept:
        about = (
            f"{one['when']} UTC, {one['cores']} cores, Python {one['python']},"
            f" rounds: {one['rounds']}, load before: {one.get('load', 'unknown')}"
        )
        rows = one["rows"]
        if any(row.hosts for row in rows):
            shown = [*growth.table(rows), "", f"![how jobs grow with their hosts]({GROWTH})"]
        else:
            shown = [HEADER, *map(line, rows)]
        title = TITLES[one["name"]]
        parts = [f"### {title}", "", about, "", *shown, ""]
        parts += [f"* {escape(remark)}" for remark in one["remarks"]]
        found[title] = "\n".join(parts).strip()
    return found


def write_document(path: Path, parts: dict[str, str]) -> None:
    """Put the parts where the last ones are; what was not measured again stays as it is."""
    before, found, rest = path.read_text().partition(BEGIN)
    if not found:
        raise SystemExit(f"{path} has no line {BEGIN}")
    written, _, after = rest.partition(END)
    kept = {part.partition("\n")[0]: f"### {part.strip()}" for part in written.split("### ")[1:]}
    shown = [text for title in TITLES.values() if (text := (kept | parts).get(title))]
    path.write_text("\n\n".join((f"{before}{BEGIN}", *shown, f"{END}{after}")))


def groups(kept: list[dict[str, Any]]) -> list[tuple[str, str, list[tuple[str, float, bool]]]]:
    """Return what is plotted: title, unit and bars (name, value, whether it is ours)."""
    found = []
    for row in (row for one in kept if one["name"] in PLOTTED for row in one["rows"]):
        others = {**row.peers, **row.bare}
        values = [
            (name, value, False)
            for name, value in others.items()
            if value and name not in row.notes and name not in UNPLOTTED
        ]
        is_wanted = not any(part in row.work for part in UNPLOTTED_WORK)
        if row.unit in ("s", "MB/s") and row.ours and values and is_wanted:
            found.append((row.work, row.unit, [("ours", row.ours, True), *values]))
    return found


def plot(kept: list[dict[str, Any]]) -> str:
    """Return a plot of bars on a logarithmic scale, one scale for each unit, as SVG."""
    shapes: list[str] = []
    top = 40
    chosen = groups(kept)
    limits = {
        unit: (
            min(v for _, u, bars in chosen for _, v, _ in bars if u == unit) / 1.5,
            max(v for _, u, bars in chosen for _, v, _ in bars if u == unit),
        )
        for unit in {unit for _, unit, _ in chosen}
    }
    for title, unit, bars in chosen:
        low, high = limits[unit]
        better = "more is better" if unit == "MB/s" else "less is better"
        name = escape(title.replace("`", ""))
        shapes.append(
            f'<text class="title" x="8" y="{top}">{name}'
            f'<tspan class="dim" dx="8">{unit}, {better}</tspan></text>'
        )
        top += 8
        for who, value, is_ours in bars:
            share = math.log(value / low) / math.log(high / low)
            width = max(2.0, share * (WIDTH - LEFT - RIGHT))
            kind = "ours" if is_ours else "peer"
            middle = top + BAR - 2
            shapes.append(
                f'<text x="{LEFT - 8}" y="{middle}" text-anchor="end">'
                f"{escape(who.replace('`', ''))}</text>"
                f'<rect class="{kind}" x="{LEFT}" y="{top}" width="{width:.1f}" height="{BAR}"/>'
                f'<text x="{LEFT + width + 6:.1f}" y="{middle}">{number(value, unit)}</text>'
            )
            top += BAR + 4
        top += GAP + 8
    style = (
        "text{font:12px sans-serif;fill:#24292f}.title{font-weight:bold}"
        ".dim{font-weight:normal;fill:#6e7781}.ours{fill:#0969da}.peer{fill:#afb8c1}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.dim{fill:#8b949e}"
        ".ours{fill:#58a6ff}.peer{fill:#57606a}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}"'
        f' viewBox="0 0 {WIDTH} {top}" role="img">\n'
        "<title>sm_runtime beside what people use today; logarithmic scales</title>\n"
        f"<style>{style}</style>\n"
        '<text class="dim" x="8" y="16">Logarithmic scales: one for seconds, one for MB/s</text>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def main() -> int:
    """Write what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", required=True, help="folder of the results")
    parser.add_argument("--summary", nargs="*", help="print what these benchmarks missed")
    parser.add_argument("--docs", help="folder of the documents to write")
    args = parser.parse_args()
    folder = Path(args.results)
    if args.summary is not None:
        print(summary(load(folder, tuple(args.summary))))
    if args.docs:
        kept = load(folder, NAMES)
        if not kept:
            raise SystemExit("there are no results: run scripts/bench first")
        write_document(Path(args.docs, "benchmarks.md"), tables(kept))
        missing = set(PLOTTED).difference(one["name"] for one in kept)
        if missing:
            print(f"the plot stays as it is: there is no result of {', '.join(sorted(missing))}")
        else:
            Path(args.docs, "benchmarks.svg").write_text(plot(kept))
        if grown := [row for one in kept for row in one["rows"] if row.hosts]:
            Path(args.docs, GROWTH).write_text(growth.plot(grown, "any script"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

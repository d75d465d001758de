"""Shows how measures grow with the number of hosts: a table, and a plot of lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from tests.benchmarks.report import Bar, Row, judged, number

LEFT, ACROSS, RIGHT, TOP, DOWN, BOTTOM = 56, 370, 334, 34, 170, 44
"""Of a panel, in pixels: the margins, and the field between them."""
WIDTH, HEIGHT = LEFT + ACROSS + RIGHT, TOP + DOWN + BOTTOM
COLOURS = ("#0969da", "#1a7f37", "#8250df", "#bc4c00", "#bf3989", "#1b7c83", "#9a6700", "#6e7781")
UNITS = {"s": "Seconds", "MiB": "MiB"}
STEPS = (1, 2, 5, 10)
"""Where the marks of a scale are, between a power of ten and the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A measure for each number of hosts."""

    name: str
    unit: str
    values: dict[int, float]
    is_ours: bool = True
    bars: tuple[Bar, ...] = ()


def lines(rows: Iterable[Row]) -> Iterator[Line]:
    """Yield the lines of rows, each of ours before those of the same work without the runtime."""
    works: dict[str, list[tuple[int, Row]]] = {}
    for row in rows:
        if row.hosts is not None:
            works.setdefault(row.work, []).append((row.hosts, row))
    for work, found in works.items():
        first = found[0][1]
        bars = tuple(bar for _, row in found for bar in row.bars)
        ours = {count: row.ours for count, row in found if row.ours}
        yield Line(name=work, unit=first.unit, values=ours, bars=bars)
        for name in first.bare:
            values = {count: value for count, row in found if (value := row.bare.get(name))}
            shown = f"{work.partition(':')[0]}: {name}"
            yield Line(name=shown, unit=first.unit, values=values, is_ours=False)


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table with a column for each number of hosts."""
    counts = sorted({row.hosts for row in rows if row.hosts is not None})
    found = [
        ("work", *(f"{count} hosts" for count in counts), "bar", "met"),
        ("---", *("---:" for _ in counts), "---", "---"),
    ]
    for line in lines(rows):
        known = line.values
        cells = (number(known[n], line.unit) if n in known else "-" for n in counts)
        found.append((line.name, *cells, *judged(line.bars)))
    return [f"| {' | '.join(cells)} |" for cells in found]


def plot(rows: Sequence[Row], unplotted: str) -> str:
    """Return the lines as SVG, with a panel for each unit; both scales are logarithmic.

    Lines with ``unplotted`` in their name are left out.
    """
    shown = [line for line in lines(rows) if line.values and unplotted not in line.name]
    panels = [[line for line in shown if line.unit == unit] for unit in UNITS]
    panels = [panel for panel in panels if panel]
    shapes = [shape for place, panel in enumerate(panels) for shape in _panel(panel, place)]
    style = (
        "text{font:12px sans-serif;fill:#24292f}.title{font-weight:bold}.end{text-anchor:end}"
        ".middle{text-anchor:middle}.grid{stroke:#d0d7de}polyline{fill:none;stroke-width:2}"
        ".bare{stroke-dasharray:5 4}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#30363d}}"
    )
    height = HEIGHT * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" role="img">\n'
        "<title>How jobs grow with their hosts; logarithmic scales</title>\n"
        f"<style>{style}</style>\n" + "\n".join(shapes) + "\n</svg>\n"
    )


def _panel(panel: Sequence[Line], place: int) -> Iterator[str]:
    """Yield the shapes of the lines of one unit."""
    counts = sorted({count for line in panel for count in line.values})
    marks = _marks([value for line in panel for value in line.values.values()])
    top = place * HEIGHT + TOP

    def x(count: float) -> float:
        return LEFT + ACROSS * _share(count, counts[0], counts[-1])

    def y(value: float) -> float:
        return top + DOWN * (1 - _share(value, marks[0], marks[-1]))

    yield f'<text class="title" x="8" y="{top - 14}">{UNITS[panel[0].unit]}</text>'
    for mark in marks:
        middle = f"{y(mark):.1f}"
        yield f'<path class="grid" d="M{LEFT} {middle}h{ACROSS}"/>'
        yield f'<text class="end" x="{LEFT - 6}" y="{y(mark) + 4:.1f}">{mark:g}</text>'
    for count in counts:
        yield f'<text class="middle" x="{x(count):.1f}" y="{top + DOWN + 18}">{count}</text>'
    yield f'<text x="{LEFT + ACROSS + 20}" y="{top + DOWN + 18}">hosts</text>'
    for position, line in enumerate(panel):
        stroke = f'stroke="{COLOURS[position % len(COLOURS)]}"'
        kind = "" if line.is_ours else ' class="bare"'
        middle = top + 6 + 19 * position
        right = LEFT + ACROSS + 20
        for points in (
            " ".join(f"{x(count):.1f},{y(value):.1f}" for count, value in line.values.items()),
            f"{right},{middle} {right + 20},{middle}",
        ):
            yield f'<polyline{kind} {stroke} points="{points}"/>'
        yield f'<text x="{right + 26}" y="{middle + 4}">{escape(line.name)}</text>'


def _marks(values: Sequence[float]) -> list[float]:
    """Return the marks of a scale: from one that no value is below to one that none is above."""
    powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    marks = sorted({step * 10.0**power for power in powers for step in STEPS})
    first = max(mark for mark in marks if mark <= min(values))
    last = min(mark for mark in marks if mark >= max(values) and mark > first)
    return [mark for mark in marks if first <= mark <= last]


def _share(value: float, low: float, high: float) -> float:
    """Return how far a value is on a logarithmic scale, from 0 to 1."""
    return math.log(value / low) / math.log(high / low) if high > low else 0.0

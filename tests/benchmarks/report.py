"""What the benchmarks print: rows of one table, which is kept as JSON for the documents as well."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

HEADER = """\
| work | ours | peers | bare, limit | ours is better | bar | met |
| --- | ---: | --- | --- | --- | --- | --- |"""
"""The factor tells how many times the best of the peers (and the bare program) takes what we do."""

SECONDS = 300.0
"""No contender may take longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What a row has to reach, and what it reached."""

    text: str
    got: str
    met: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measure; a value that there is not is None."""

    work: str
    unit: str
    ours: float | None
    peers: dict[str, float | None] = field(default_factory=dict)
    bare: dict[str, float | None] = field(default_factory=dict)
    bars: tuple[Bar, ...] = ()
    more_is_better: bool = False
    notes: dict[str, str] = field(default_factory=dict)
    """By the name of a contender that did other work, so that it gets no factor."""
    hosts: int | None = None
    """How many hosts the job had, where it is measured with several numbers of them."""

    @property
    def title(self) -> str:
        """What was measured."""
        return self.work if self.hosts is None else f"{self.work}, {self.hosts} hosts"


def at_most(row_value: float | None, limit: float, unit: str) -> Bar:
    """Return the bar of a measure that must not exceed ``limit``."""
    got = "-" if row_value is None else number(row_value, unit)
    text = f"≤ {limit:g} {unit}"
    return Bar(text=text, got=got, met=row_value is not None and row_value <= limit)


def times(ours: float | None, other: float | None, least: float, name: str, *, rate: bool) -> Bar:
    """Return the bar that ours is at least ``least`` times as good as another."""
    text = f"≥ {least:g} x {name}"
    if not ours or not other:
        return Bar(text=text, got="-", met=False)
    factor = ours / other if rate else other / ours
    return Bar(text=text, got=f"{factor:.2f} x", met=factor >= least)


def beyond(ours: float | None, bare: float | None, limit: float, name: str) -> Bar:
    """Return the bar of seconds beyond the bare program."""
    text = f"≤ {name} + {limit:g} s"
    if ours is None or bare is None:
        return Bar(text=text, got="-", met=False)
    return Bar(text=text, got=f"{ours - bare:+.3f} s", met=ours - bare <= limit)


def within(ours: float | None, bare: float | None, most: float, name: str) -> Bar:
    """Return the bar that ours takes at most so many times what another takes."""
    text = f"≤ {most:g} x {name}"
    if not ours or not bare:
        return Bar(text=text, got="-", met=False)
    return Bar(text=text, got=f"{ours / bare:.2f} x", met=ours <= most * bare)


def number(value: float, unit: str) -> str:
    """Return a value with its unit, in as many digits as mean something."""
    if unit == "s":
        return f"{value:.3f} s" if value < 1 else f"{value:.2f} s"
    if unit == "requests":
        return f"{value:,.0f}"
    if unit == "ms" and value < 10:
        return f"{value:.2f} ms"
    return f"{value:.1f} {unit}" if value < 100 else f"{value:,.0f} {unit}"


def _cell(values: dict[str, float | None], row: Row) -> str:
    cells = []
    for name, value in values.items():
        shown = "-" if value is None else number(value, row.unit)
        note = f" ({row.notes[name]})" if name in row.notes else ""
        cells.append(f"{name} {shown}{note}")
    return ", ".join(cells)


def _factor(row: Row, other: float) -> float:
    assert row.ours
    return row.ours / other if row.more_is_better else other / row.ours


def _factors(row: Row) -> str:
    if not row.ours:
        return ""
    found = []
    for values in (row.peers, row.bare):
        known = {n: v for n, v in values.items() if v and n not in row.notes}
        if known:
            best = min(known, key=lambda name: _factor(row, known[name]))
            found.append(f"{_factor(row, known[best]):.2f} x {best}")
    return ", ".join(found)


def judged(bars: Sequence[Bar]) -> tuple[str, str]:
    """Return the last two cells of a line: what was to be reached, and whether it was."""
    reached = "; ".join(f"{'yes' if bar.met else '**no**'}: {bar.got}" for bar in bars)
    return "; ".join(bar.text for bar in bars), reached


def line(row: Row) -> str:
    """Return the row as a line of the table."""
    ours = "-" if row.ours is None else number(row.ours, row.unit)
    work = row.work if row.hosts is None else f"{row.work}, {row.hosts} hosts"
    cells = (
        work,
        ours,
        _cell(row.peers, row),
        _cell(row.bare, row),
        _factors(row),
        *judged(row.bars),
    )
    return f"| {' | '.join(cells)} |"


class Report:
    """Prints rows as they come and keeps them, with what is to be said of those left out."""

    def __init__(self, name: str, folder: str, rounds: int) -> None:
        self.path = Path(folder, f"{name}.json") if folder else None
        self.kept: dict[str, object] = {
            "name": name,
            "when": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
            "cores": len(os.sched_getaffinity(0)),
            "python": sys.version.split()[0],
            "rounds": rounds,
            "load": round(os.getloadavg()[0], 1),
        }
        self.rows: list[Row] = []
        self.remarks: list[str] = []
        self._save()  # so that nothing of an earlier run is taken for one of this

    def add(self, *rows: Row) -> None:
        """Print rows and keep them."""
        for row in rows:
            self.rows.append(row)
            print(line(row), flush=True)
        self._save()

    def remark(self, text: str) -> None:
        """Say something beside the table, once."""
        text = " ".join(text.split())
        if text not in self.remarks:
            self.remarks.append(text)
            print(f"== {text}", file=sys.stderr, flush=True)
            self._save()

    def _save(self) -> None:
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            rows = [asdict(row) for row in self.rows]
            self.path.write_text(
                json.dumps({**self.kept, "rows": rows, "remarks": self.remarks}, indent=1)
            )


class Failed(Exception):
    """A contender that cannot do the work, and why."""


def reason(error: BaseException) -> str:
    """Return an error as one line."""
    first = (str(error).strip() or "no message").splitlines()[-1]
    return first if isinstance(error, Failed) else f"{type(error).__name__}: {first}"


def timed(peak: str | Path) -> tuple[str, ...]:
    """Return the words before a command that is to write its most KiB to the file ``peak``.

    After ``SECONDS`` all of it is killed.
    """
    limit = ("timeout", "--kill-after=5", f"{SECONDS:.0f}")
    return (*limit, "/usr/bin/time", "--quiet", "--format=%M", f"--output={peak}")


def parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """Return the options that each benchmark takes."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--ours", default="", help="virtual environment with sm-runtime")
    made.add_argument("--peer", default="", help="virtual environment with sagemaker-training")
    made.add_argument("--results", default="", help="folder that NAME.json is written to")
    made.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    return made


def take_part(
    ways: Sequence[str],
    rounds: int,
    run: Callable[[str], tuple[float, ...]],
    report: Report,
    title: str,
) -> dict[str, list[tuple[float, ...]]]:
    """Return what each way cost in each round; in a round they take turns, each time another first.

    A way that fails is left out from then on, which the report says.
    """
    costs: dict[str, list[tuple[float, ...]]] = {way: [] for way in ways}
    for turn in range(rounds):
        left = tuple(costs)
        first = turn % len(left) if left else 0
        for way in (*left[first:], *left[:first]):
            try:
                costs[way].append(run(way))
            except Exception as error:
                report.remark(f"{title}: {way} is left out: {reason(error)}")
                del costs[way]
    return costs


def measured(name: str, args: argparse.Namespace, run: Callable[[Report], None]) -> int:
    """Run a benchmark; return its exit status, having said in one line why it failed."""
    report = Report(name, args.results, args.rounds)
    try:
        run(report)
    except Exception as error:
        if args.results:
            Path(args.results, f"{name}.log").write_text(traceback.format_exc())
        report.add(Row(work=name, unit="", ours=None))
        report.remark(f"{name} failed: {reason(error)}")
        return 1
    return 0

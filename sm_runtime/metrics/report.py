"""A job as one HTML file without outside parts: ``sm-runtime report``.

Made of what the job left below ``output``; the plots are pygal's, as SVG inside of the file.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from html import escape
from typing import Any

from sm_runtime import programs
from sm_runtime.job.errors import ConfigError
from sm_runtime.job.model import Paths
from sm_runtime.output import outcome

log = logging.getLogger(__name__)

NAME = "report.html"
NO_PYGAL = 3
"""The exit status of the program without pygal."""
MAKE_SECONDS = 20.0
"""How long it may take to make a report at the end of a job."""
LOOK_SECONDS = 0.05
NARROW = 1e-6
"""Values that differ by a smaller share of themselves are shown as one."""
POINTS = 400
"""The most points of a curve: more cannot be told apart, and make a file large."""
_MIB = 2**20

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.status { border-radius: .3rem; color: #fff; font-size: .9rem; padding: .2rem .5rem; }
.success { background: #1b7f3b; } .failure { background: #b3261e; }
.phases { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0; }
.bar { background: #8882; border-radius: .2rem; height: 1.6rem; overflow: hidden;
  position: relative; }
.bar span { bottom: 0; min-width: 2px; position: absolute; top: 0; }
.phases i { border-radius: .2rem; display: inline-block; height: .8rem; width: .8rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
td, th { border-bottom: 1px solid #8884; padding: .2rem .8rem .2rem 0; text-align: left;
  vertical-align: top; }
pre { background: #8882; overflow-x: auto; padding: .6rem; white-space: pre-wrap;
  word-break: break-word; }
td { word-break: break-word; }
figure { margin: 0 0 1rem; } figure svg { height: auto; max-width: 100%; }
.plots { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
"""
_UNUSED = re.compile(r"<script.*?</script>|<!--.*?-->", re.DOTALL)
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222255")


def made_apart(paths: Paths, is_wanted: Callable[[], bool]) -> str | None:
    """Return the path of the report, made by another process as long as it ``is_wanted``.

    None without pygal, or where it takes too long. Raises OSError and ValueError where it cannot be
    made: what a script has printed is plotted, and nothing of it may cost the job its end.
    """
    argv = (*programs.start(sys.executable, "sm_runtime.metrics.report:main"), paths.base)
    deadline = time.monotonic() + MAKE_SECONDS
    with subprocess.Popen(
        argv, cwd="/", env={"PATH": os.defpath}, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        while process.poll() is None and time.monotonic() < deadline and is_wanted():
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_SECONDS)
        process.kill()
        assert process.stderr
        said = process.stderr.read().decode("utf-8", "replace").strip()
    if process.returncode in (0, NO_PYGAL):
        return paths.under("output", "metrics", NAME) if process.returncode == 0 else None
    if process.returncode < 0:
        log.warning("no report is made: it took too long")
        return None
    raise ValueError(said.rpartition("\n")[2] or f"exit code {process.returncode}")


def main() -> None:
    """Write the report of the job below the folder that is the argument; the program of a job."""
    try:
        write(Paths(sys.argv[1]))
    except ImportError:
        sys.exit(NO_PYGAL)


def write(paths: Paths, target: str | None = None) -> str:
    """Write the report of the job that ended below ``paths``, atomically; return its path.

    Raises ConfigError where no job has ended there, ImportError without pygal, OSError where the
    file cannot be written.
    """
    _pygal()
    text = html(paths)
    target = target or paths.under("output", "metrics", NAME)
    with open(target + ".part", "w", encoding="utf-8", errors="replace") as file:
        file.write(text)
    os.replace(target + ".part", target)
    return target


def html(paths: Paths) -> str:
    """Return the report; raises as ``write``."""
    folder = paths.under("output", "metrics")
    job = _job(os.path.join(folder, outcome.JOB_FILE))
    name = job["name"] or "A job without a name"
    parts = [
        f"<h1>{escape(str(name))} <span class='status {job['status']}'>{job['status']}</span></h1>",
        f"<p>{_headline(job)}</p>",
        *_phases(job),
        *_failure(job),
        *_metrics(_lines(os.path.join(folder, "script.jsonl"))),
        *_host(_lines(os.path.join(folder, "host.jsonl"))),
        *_hosts(job),
        *_configuration(job),
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<link rel='icon' href='data:,'><title>{escape(str(name))}</title>"
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _job(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
            return found
    except FileNotFoundError:
        raise ConfigError(f"{path}: does not exist: no job has ended here") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _lines(path: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file with one on each line; a last one that is cut is left out."""
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue
    except OSError:
        return


# -- the parts -------------------------------------------------------------------------------


def _headline(job: dict[str, Any]) -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(job["started"]))
    where = f"{len(job['hosts'])} hosts" if len(job["hosts"]) > 1 else f"host {job['host']}"
    facts = [
        f"began {began}",
        f"took {outcome.duration(job['seconds'])}",
        where,
        f"exit status {job['exit']}",
    ]
    return escape(", ".join(facts))


def _phases(job: dict[str, Any]) -> list[str]:
    total = max(job["seconds"], 1e-3)
    names = list(dict.fromkeys(phase["name"] for phase in job["phases"]))
    colours = dict(zip(names, _COLOURS * (1 + len(names) // len(_COLOURS)), strict=False))
    bar, seconds = "", dict.fromkeys(names, 0.0)
    for phase in job["phases"]:
        begin, end = phase["begin"], phase["end"]
        seconds[phase["name"]] += end - begin
        style = f"left:{100 * begin / total:.2f}%;width:{100 * (end - begin) / total:.2f}%"
        title = escape(f"{phase['name']} {outcome.duration(end - begin)}")
        bar += f"<span title='{title}' style='{style};background:{colours[phase['name']]}'></span>"
    legend = ""
    for name in names:
        key = f"<i style='background:{colours[name]}'></i>"
        legend += f"<li>{key} {escape(name)} {outcome.duration(seconds[name])}</li>"
    return ["<h2>Phases</h2>", f"<div class='bar'>{bar}</div><ul class='phases'>{legend}</ul>"]


def _failure(job: dict[str, Any]) -> list[str]:
    found = job["failure"]
    if not found:
        return []
    rows = [
        (key, found[key]) for key in ("phase", "exit", "signal", "host", "rank", "file", "line")
    ]
    lines = "\n".join(map(str, found["last_lines"]))
    return [
        "<h2>Failure</h2>",
        f"<p><b>{escape(found['class'])}</b>: {escape(found['message'])}</p>",
        _table([(key, value) for key, value in rows if value is not None]),
        f"<pre>{escape(lines)}</pre>" if lines else "",
    ]


class _Curve:
    """The points of a curve, as many as can be told apart, and what is said of all values."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.count = 0
        self.last = self.least = self.greatest = math.nan
        self._step = 1

    def add(self, x: float | None, value: Any) -> None:
        """Take a value; without ``x`` its number is its place. No number is only counted."""
        self.count += 1
        self.last = value = value if isinstance(value, int | float) else math.nan
        if not math.isfinite(value):
            return
        self.least = value if math.isnan(self.least) else min(value, self.least)
        self.greatest = value if math.isnan(self.greatest) else max(value, self.greatest)
        if (self.count - 1) % self._step == 0:
            self.points.append((self.count - 1 if x is None else x, value))
        if len(self.points) > 2 * POINTS:
            self.points, self._step = self.points[::2], 2 * self._step


def _metrics(values: Iterable[dict[str, Any]]) -> list[str]:
    curves: dict[str, dict[str, _Curve]] = {}
    totals: dict[str, _Curve] = {}
    for value in values:
        name = str(value["name"])
        by_host = curves.setdefault(name, {})
        by_host.setdefault(str(value["host"]), _Curve()).add(None, value["value"])
        totals.setdefault(name, _Curve()).add(None, value["value"])
    if not totals:
        return []
    plots = [_plot(name, by_host, "value number") for name, by_host in curves.items()]
    rows = [
        (
            name,
            total.count,
            *(f"{number:g}" for number in (total.last, total.least, total.greatest)),
        )
        for name, total in totals.items()
    ]
    head = ("metric", "values", "last", "least", "greatest")
    return ["<h2>Metrics</h2>", _table(rows, head), f"<div class='plots'>{''.join(plots)}</div>"]


def _host(samples: Iterable[dict[str, Any]]) -> list[str]:
    curves: dict[str, dict[str, _Curve]] = {}
    began = None
    for sample in samples:
        began = sample["time"] if began is None else began
        for title, label, number in _numbers(sample):
            line = f"{label} {sample['host']}".strip()
            curve = curves.setdefault(title, {}).setdefault(line, _Curve())
            curve.add(sample["time"] - began, number)
    if not curves:
        return []
    plots = "".join(_plot(title, lines, "seconds", 0) for title, lines in curves.items())
    return ["<h2>Host</h2>", f"<div class='plots'>{plots}</div>"]


def _numbers(sample: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Yield what is plotted of a sample: the plot, the curve, the value."""
    for key, title, label, unit in (
        ("cpu_percent", "CPU (%)", "", 1),
        ("memory_bytes", "Memory (MiB)", "", _MIB),
        ("disk_read_bytes_per_second", "Disk (MiB/s)", "read", _MIB),
        ("disk_written_bytes_per_second", "Disk (MiB/s)", "written", _MIB),
        ("network_received_bytes_per_second", "Network (MiB/s)", "received", _MIB),
        ("network_sent_bytes_per_second", "Network (MiB/s)", "sent", _MIB),
    ):
        if key in sample:
            yield title, label, sample[key] / unit
    for index, gpu in enumerate(sample.get("gpus", ())):
        yield "GPU (%)", f"GPU {index}", gpu["percent"]
        yield "GPU memory (MiB)", f"GPU {index}", gpu["memory_bytes"] / _MIB


def _hosts(job: dict[str, Any]) -> list[str]:
    if job["kind"] == "plain":
        return []
    each, failed = job["processes_per_host"], job["failure"] or {}
    rows = [
        (
            host + " (leader)" * (index == 0),
            ", ".join(str(rank) for rank in range(index * each, (index + 1) * each)),
            "failed first" if failed.get("host") == host else "",
        )
        for index, host in enumerate(job["hosts"])
    ]
    title = f"<h2>Hosts and ranks ({escape(job['kind'])})</h2>"
    return [title, _table(rows, ("host", "ranks", ""))]


def _configuration(job: dict[str, Any]) -> list[str]:
    channels = [
        (c["name"], c["mode"], c["from"] or "placed by the platform") for c in job["channels"]
    ]
    facts = [(key, job[key]) for key in ("program", "output", "runtime", "python") if job[key]]
    return [
        "<h2>Configuration</h2>",
        _table(facts),
        "<h2>Arguments</h2>" if job["arguments"] else "",
        f"<pre>{escape(' '.join(job['arguments']))}</pre>" if job["arguments"] else "",
        "<h2>Hyperparameters</h2>" if job["hyperparameters"] else "",
        _table(list(job["hyperparameters"].items())),
        "<h2>Channels</h2>" if channels else "",
        _table(channels, ("channel", "mode", "from")) if channels else "",
        "<h2>Options</h2>" if job["options"] else "",
        _table(list(job["options"].items())),
        "<h2>Saved</h2>" if job["saved"] else "",
        "".join(f"<p>{escape(line)}</p>" for line in job["saved"]),
    ]


# -- their pieces ----------------------------------------------------------------------------


def _table(rows: Iterable[tuple[Any, ...]], head: tuple[str, ...] = ()) -> str:
    lines = [_row(head, "th")] if head else []
    lines += [_row(row, "td") for row in rows]
    return f"<div class='wide'><table>{''.join(lines)}</table></div>" if lines else ""


def _row(cells: tuple[Any, ...], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(str(cell))}</{tag}>' for cell in cells)}</tr>"


def _plot(title: str, curves: dict[str, _Curve], below: str, least: float | None = None) -> str:
    """Return an SVG of some curves, by name; the axis begins at ``least`` where that is given."""
    shown = {name: curve.points for name, curve in curves.items() if curve.points}
    if not shown:
        return f"<p>{escape(title)}: there is no finite value to plot.</p>"
    try:
        return _svg(title, shown, below, least)
    except (ArithmeticError, ValueError) as error:
        return f"<p>{escape(title)}: cannot be plotted: {escape(str(error))}</p>"


def _svg(
    title: str, curves: dict[str, list[tuple[float, float]]], below: str, least: float | None
) -> str:
    pygal = _pygal()
    style = importlib.import_module("pygal.style").CleanStyle(
        colors=_COLOURS,
        background="transparent",
        plot_background="transparent",
        font_family="sans-serif",
    )
    points = [point for line in curves.values() for point in line]
    across = [x for x, _ in points]
    values = [value for _, value in points]
    low = min(values) if least is None else least
    chart = pygal.XY(
        style=style,
        js=[],
        width=440,
        height=260,
        title=title,
        x_title=below,
        show_dots=max(map(len, curves.values())) < 50,
        show_legend=len(curves) > 1,
        legend_at_bottom=True,
        xrange=_widened(min(across), max(across)),
        range=_widened(low, max(values)),
        disable_xml_declaration=True,
        pretty_print=False,
    )
    for name, line in curves.items():
        step = -(-len(line) // POINTS)
        chart.add(name or title, line[::step])
    # Without what only pygal's own script would read, and comments that name it.
    return f"<figure>{_UNUSED.sub('', chart.render(is_unicode=True))}</figure>"


def _widened(low: float, high: float) -> tuple[float, float]:
    """Return bounds that differ enough: between others pygal looks for marks without end."""
    size = max(abs(low), abs(high))
    if high - low > size * NARROW:
        return low, high
    return low - (size * NARROW or 1.0), high + (size * NARROW or 1.0)


def _pygal() -> Any:
    """Return pygal, without the finder for its own plug-ins, which Python warns of.

    It has no ``find_spec`` (pygal 3.1).
    """
    found = importlib.import_module("pygal")
    sys.meta_path[:] = [each for each in sys.meta_path if hasattr(each, "find_spec")]
    return found

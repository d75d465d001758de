"""Fills the folders of channels with the objects, or the local files, that they name.

In the order that makes failures cheap: everything is listed and checked, the room is compared with
what is free, and only then the first byte is fetched. While a folder is being filled it holds a
file that says so; the next run goes on where the same content was being fetched, and otherwise
starts afresh, so that a partial folder is never taken for a filled one.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from threading import Event, Lock, Thread
from typing import Any, TextIO

from sm_runtime.channels.coding import gunzipped
from sm_runtime.channels.folder import Folder, shortage
from sm_runtime.channels.objects import OriginOf, Origins
from sm_runtime.channels.survey import Survey, survey
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel, Job
from sm_runtime.job.text import human_duration, human_size
from sm_runtime.storage import Blob, Body
from sm_runtime.storage.threads import Stopped, Workers
from sm_runtime.storage.writing import replaced

log = logging.getLogger(__name__)

_LISTED_AT_ONCE = 8
_UNPACKED_AT_ONCE = 16
_BUFFER_BYTES = 1 << 18
LINE_SECONDS = 10.0
_RATE_SECONDS = 30.0
"""The rate is that of the last so many seconds: a stall shows."""


def run(
    job: Job,
    channels: Sequence[Channel],
    environ: Mapping[str, str],
    stopped: Callable[[], bool],
    *,
    locked: Collection[str] = (),
) -> None:
    """Fill the folder of each of ``channels``; raise DataError naming the channel.

    All that is in those whose names are ``locked`` loses its write permission after that.
    """
    if not channels:
        return
    with Origins.of(job, environ) as origins:
        surveys = _survey_all(job, channels, origins, stopped)
        links = job.options.link_channels
        folders = [
            Folder(found, links=links, is_locked=found.channel.name in locked, stopped=stopped)
            for found in surveys
        ]
        for folder in folders:
            folder.begin()
        _make_room(folders)
        for folder in folders:
            folder.link()
        for is_local in (True, False):
            _fetch(folders, origins, stopped, is_local=is_local)
        for folder in folders:
            folder.finish()


def _survey_all(
    job: Job, channels: Sequence[Channel], origins: Origins, stopped: Callable[[], bool]
) -> list[Survey]:
    """Return what each channel holds; all of them are listed at once."""
    errors: list[BaseException] = []  # the first is the reason: it ends the others

    def one(channel: Channel) -> Survey:
        try:
            found = survey(channel, job.cluster, origins, lambda: bool(errors) or stopped())
            if not found.matched and not job.options.allow_empty_channels:
                raise DataError(f"{found.where} matched 0 objects")
            return found
        except BaseException as error:
            errors.append(error)
            raise

    with ThreadPoolExecutor(min(len(channels), _LISTED_AT_ONCE), "listing") as pool:
        futures = [pool.submit(one, channel) for channel in channels]
    if errors:
        raise errors[0]
    return [future.result() for future in futures]


def _make_room(folders: Sequence[Folder]) -> None:
    """Have local files linked where there is not room for copies; raise DataError if even so."""
    while found := shortage(folder.need() for folder in folders):
        short = {need.channel for need in found.needs}
        able = [f for f in folders if f.survey.channel.name in short and f.coming(local=True)[0]]
        rough = [folder for folder in able if not folder.is_measured]
        if not able:
            raise DataError(found.reason)
        if rough:
            for folder in rough:
                folder.measure()
            continue
        largest = max(able, key=lambda folder: folder.need().size_bytes)
        largest.links = True
        log.warning(
            "%s; so the files of channel %s are links: what the script writes into one changes %s",
            found.reason,
            largest.survey.channel.name,
            largest.survey.source.uri,
        )


def _fetch(
    folders: Sequence[Folder], origins: Origins, stopped: Callable[[], bool], *, is_local: bool
) -> None:
    """Fetch what is not there: one place after the other, each with all there is to give."""
    coming = {folder: folder.coming(local=is_local) for folder in folders}
    chosen = [folder for folder in folders if coming[folder][0]]
    if not chosen:
        return
    names = ", ".join(folder.survey.channel.name for folder in chosen)
    total = sum(coming[folder][1] for folder in chosen)
    doing, done = ("copying", "copied") if is_local else ("downloading", "downloaded")
    with Progress(f"{doing} {names}", total, terminal=terminal()) as telling:
        telling.add(sum(coming[folder][2][1] for folder in chosen))
        places = {place for folder in chosen for place in folder.survey.places}
        for place in sorted(places):
            plain = [
                f for f in chosen if f.survey.is_local(place) == is_local and not f.survey.unpacks
            ]
            if plain:
                origin = origins(f"{place[0]}://{place[1]}/")
                wanted = chain.from_iterable(folder.wanted(place) for folder in plain)
                origin.fetch(wanted, progress=telling.add, stopped=stopped)
        if packed := [folder for folder in chosen if folder.survey.unpacks]:
            wanted = chain.from_iterable(f.wanted(p) for f in packed for p in f.survey.places)
            _fetch_unpacked(wanted, origins, telling.add, stopped)
        seconds = telling.seconds
    what = (_files(folder.survey.channel.name, *coming[folder][:2]) for folder in chosen)
    rate = human_size(int(total / max(seconds, 1e-9)))
    log.info("%s %s in %s (%s/s)", done, ", ".join(what), human_duration(seconds), rate)


def _files(name: str, count: int, size_bytes: int) -> str:
    return f"{name} {count} file{'s'[: count != 1]} of {human_size(size_bytes)}"


def _fetch_unpacked(
    wanted: Iterable[tuple[Blob, str]],
    origin_of: OriginOf,
    progress: Callable[[int], None],
    stopped: Callable[[], bool],
) -> None:
    """Unpack each object to its path, many at once; nothing that is packed is on the disk.

    No path is there before it is complete. ``progress`` is told of the compressed bytes. Raises
    DataError naming the object.
    """
    try:
        with Workers(_UNPACKED_AT_ONCE, stopped) as workers:
            for blob, path in wanted:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                work = partial(_unpack, blob, path, origin_of, progress, workers.is_stopped)
                workers.submit(work)
    except Stopped:
        raise DataError("the download was stopped") from None


def _unpack(
    blob: Blob,
    path: str,
    origin_of: OriginOf,
    progress: Callable[[int], None],
    stopped: Callable[[], bool],
) -> None:
    try:
        with (
            origin_of(blob.uri).open(blob, stopped=stopped) as body,
            replaced(path) as target,
            open(target, "wb", closefd=False) as file,
        ):
            for piece in gunzipped(_arriving(body, progress), blob.uri):
                file.write(piece)
                if stopped():  # little that arrives may be much that is written
                    raise Stopped
    except OSError as error:
        more = " (how much a compressed object unpacks to is not known before)"
        reason = f"{error.strerror}{more if error.errno == errno.ENOSPC else ''}"
        raise DataError(f"{blob.uri} cannot be unpacked to {path}: {reason}") from None


def _arriving(body: Body, progress: Callable[[int], None]) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    while count := body.readinto(buffer):
        yield buffer[:count]
        progress(count)


class Progress:
    """Counts bytes, from any thread, and tells of them while the block lasts.

    ``every`` is the seconds from one line to the next; ``terminal`` gets a bar instead, where tqdm
    is installed.
    """

    def __init__(
        self,
        what: str,
        total_bytes: int,
        *,
        terminal: TextIO | None = None,
        every: float = LINE_SECONDS,
    ) -> None:
        self._what, self._total, self._every = what, total_bytes, every
        self._bar = _bar(what, total_bytes, terminal) if terminal else None
        self._done = 0
        self._lock = Lock()
        self._over = Event()
        self._thread = Thread(target=self._tell, name="progress", daemon=True)
        self._begun = time.monotonic()
        self._seen: list[tuple[float, int]] = [(self._begun, 0)]

    def add(self, size_bytes: int) -> None:
        """Count so many bytes more."""
        with self._lock:
            self._done += size_bytes
            if self._bar is not None:
                try:
                    self._bar.update(size_bytes)
                except (OSError, ValueError):  # nobody looks any more: the download goes on
                    self._bar = None

    @property
    def seconds(self) -> float:
        """How long the download has taken up to now."""
        return time.monotonic() - self._begun

    def __enter__(self) -> Progress:
        if self._bar is None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._bar is not None:
            self._bar.close()

    def _tell(self) -> None:
        while not self._over.wait(self._every):
            log.info("%s", self._text())

    def _text(self) -> str:
        now, done = time.monotonic(), self._done
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _RATE_SECONDS:
            self._seen.pop(0)
        since, before = self._seen[0]
        rate = (done - before) / max(now - since, 1e-9)
        return line(self._what, done, self._total, rate)


def terminal() -> TextIO | None:
    """Return the terminal that the log goes to, if it is one."""
    try:
        return sys.stderr if sys.stderr.isatty() else None
    except (AttributeError, ValueError):  # closed, or none at all
        return None


def line(what: str, done_bytes: int, total_bytes: int, rate: float) -> str:
    """Return how far it is in words; ``rate`` is in bytes per second."""
    percent = 100 * done_bytes // total_bytes if total_bytes else 100
    left = max(0, total_bytes - done_bytes)
    if not left:
        rest = "nearly done"
    elif rate < 1:
        rest = "nothing arrives"
    else:
        rest = f"{human_duration(left / rate)} left"
    return (
        f"{what}: {human_size(done_bytes)} of {human_size(total_bytes)} ({percent} %),"
        f" {human_size(int(rate))}/s, {rest}"
    )


def _bar(what: str, total_bytes: int, terminal: TextIO) -> Any:
    """Return tqdm's bar; None where it is not installed."""
    if find_spec("tqdm") is None:
        return None
    return import_module("tqdm").tqdm(
        desc=what, total=total_bytes, unit="B", unit_scale=True, unit_divisor=1024,
        file=terminal, leave=False,
    )  # fmt: skip

"""Fills the folders of File channels with the objects that they name.

In the order that makes failures cheap: everything is listed and checked, the room is compared with
what is free, and only then the first byte is fetched. While a folder is being filled it holds a
file that says so; the next run goes on where the same content was being fetched, and otherwise
starts afresh, so that a partial folder is never taken for a filled one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from stat import S_ISREG

from sm_runtime.channels import UNFINISHED, progress, room
from sm_runtime.channels.progress import Progress
from sm_runtime.channels.selection import Origins
from sm_runtime.channels.survey import StoppedError, Survey, summary, survey
from sm_runtime.errors import DataError
from sm_runtime.model import Channel, Job
from sm_runtime.storage import Blob

log = logging.getLogger(__name__)

_LISTED_AT_ONCE = 8
_NAMED = 10


def run(
    job: Job, channels: Sequence[Channel], environ: Mapping[str, str], stopped: Callable[[], bool]
) -> None:
    """Fill the folder of each of ``channels``; raise DataError naming the channel."""
    with Origins.of(job, environ) as origins:
        surveys = _survey_all(job, channels, origins, stopped)
        folders = [_Folder(found) for found in surveys]
        for folder in folders:
            folder.begin()
        room.check(folder.need() for folder in folders)
        for folder in folders:
            folder.link()
        if any(found.copied_files for found in surveys):
            _fetch(folders, origins, stopped)
        for folder in folders:
            folder.finish()


def _survey_all(
    job: Job, channels: Sequence[Channel], origins: Origins, stopped: Callable[[], bool]
) -> list[Survey]:
    """Return what each channel holds; all of them are listed at once."""
    from concurrent.futures import ThreadPoolExecutor

    failed = False

    def one(channel: Channel) -> Survey:
        nonlocal failed
        try:
            found = survey(channel, job.cluster, origins, lambda: failed or stopped())
            if not found.matched and not job.options.allow_empty_channels:
                raise DataError(f"{found.where} matched 0 objects")
            return found
        except BaseException:
            failed = True
            raise

    with ThreadPoolExecutor(min(len(channels), _LISTED_AT_ONCE), "listing") as pool:
        futures = [pool.submit(one, channel) for channel in channels]
    errors = [error for future in futures if (error := future.exception())]
    # One that only stopped because of another is not what the user has to know.
    for error in sorted(errors, key=lambda error: isinstance(error, StoppedError)):
        raise error
    return [future.result() for future in futures]


def _fetch(folders: Sequence[_Folder], origins: Origins, stopped: Callable[[], bool]) -> None:
    """Fetch what is not there: one place after the other, each with all there is to give."""
    surveys = [folder.survey for folder in folders if folder.survey.copied_files]
    names = ", ".join(found.channel.name for found in surveys)
    total = sum(found.copied_bytes for found in surveys)
    plain = [folder for folder in folders if not folder.survey.unpacks]
    packed = [folder for folder in folders if folder.survey.unpacks]
    with Progress(f"downloading {names}", total, terminal=progress.terminal()) as telling:
        telling.add(sum(folder.kept_bytes for folder in folders))
        for place in sorted({place for found in surveys for place in found.places}):
            origin = origins(f"{place[0]}://{place[1]}/")
            chosen = [folder for folder in plain if folder.survey.is_copied(place)]
            wanted = chain.from_iterable(folder.wanted(place) for folder in chosen)
            origin.fetch(wanted, progress=telling.add, stopped=stopped)
        if packed:
            from sm_runtime.channels import gunzip

            wanted = chain.from_iterable(folder.wanted() for folder in packed)
            gunzip.fetch(wanted, origins, telling.add, stopped)
        seconds = telling.seconds
    log.info(
        "downloaded %s in %s (%s/s)",
        summary(surveys),
        progress.duration(seconds),
        progress.size(int(total / max(seconds, 1e-9))),
    )


class _Folder:
    """The folder of a channel while it is being filled."""

    def __init__(self, found: Survey) -> None:
        self.survey = found
        self.kept_bytes = 0
        """Of an interrupted download: what need not be fetched again."""
        self._path = found.channel.path
        self._marker = os.path.join(self._path, UNFINISHED)
        self._is_resumed = False

    def begin(self) -> None:
        """Have the folder there, marked as unfinished, with nothing in it that does not belong."""
        version = self.survey.version
        with self._named():
            if os.path.islink(self._path):
                os.unlink(self._path)
            os.makedirs(self._path, exist_ok=True)
            before = _read(self._marker)
            if before is not None:
                self._is_resumed = version is not None and before == version
                self._tidy()
            with open(self._marker, "w", encoding="ascii") as file:
                file.write(version or "")
        if self._is_resumed:
            self.kept_bytes = sum(b.size_bytes for b, path in self._all() if self._has(b, path))
            log.info(
                "channel %s: %s are there from an interrupted download of the same objects",
                self.survey.channel.name,
                progress.size(self.kept_bytes),
            )

    def need(self) -> room.Need:
        """Return what is still to come."""
        return room.Need(
            channel=self.survey.channel.name,
            folder=self._path,
            size_bytes=max(0, self.survey.copied_bytes - self.kept_bytes),
            files=self.survey.copied_files,
        )

    def wanted(self, place: tuple[str, str] | None = None) -> Iterator[tuple[Blob, str]]:
        """Yield the objects of a place that are not there, each with its path."""
        for blob, path in self._all(place):
            if not (self._is_resumed and self._has(blob, path)):
                yield blob, path

    def link(self) -> None:
        """Let the paths of local objects lead to them: nothing is copied."""
        with self._named():
            made = ""
            for place in self.survey.places:
                if self.survey.is_copied(place):
                    continue
                for blob, path in self._all(place):
                    folder = os.path.dirname(path)
                    if folder != made:
                        os.makedirs(folder, exist_ok=True)
                        made = folder
                    with suppress(FileNotFoundError):
                        os.unlink(path)
                    os.symlink(blob.key, path)

    def finish(self) -> None:
        """Check that all of it is there, and take the mark away; raise DataError if not."""
        wrong: list[str] = []
        count = 0
        for blob, path in self._all():
            if not self._has(blob, path):
                count += 1
                if len(wrong) < _NAMED:
                    wrong.append(repr(blob.key))
        if count:
            more = ", ..." if count > len(wrong) else ""
            raise DataError(
                f"{self.survey.where}: {count} of {self.survey.files} objects are not there in"
                f" full after the download: {', '.join(wrong)}{more}"
            )
        with self._named():
            if self.survey.lines:
                name, lines = self.survey.lines
                with open(os.path.join(self._path, name), "wb") as file:
                    file.writelines(line + b"\n" for line in lines)
            os.unlink(self._marker)

    def _all(self, place: tuple[str, str] | None = None) -> Iterator[tuple[Blob, str]]:
        return self.survey.wanted(place)

    def _has(self, blob: Blob, path: str) -> bool:
        """Return whether the object is there; a final name never holds a part of one."""
        try:
            found = os.stat(path)
        except OSError:
            return False
        is_whole = found.st_size == blob.size_bytes or self.survey.unpacks
        return S_ISREG(found.st_mode) and is_whole

    def _tidy(self) -> None:
        """Remove what an interrupted download has left and this one cannot use."""
        from shutil import rmtree

        for folder, folders, files in os.walk(self._path):
            if not self._is_resumed:
                for name in folders:
                    path = os.path.join(folder, name)
                    if os.path.islink(path):
                        os.unlink(path)
                    else:
                        rmtree(path)
                folders.clear()
            for name in files:
                path = os.path.join(folder, name)
                inside = os.path.relpath(path, self._path)
                known = self.survey.layout.holds(inside)
                if path != self._marker and not (self._is_resumed and known):
                    os.unlink(path)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path = error.filename or self._path
            name = self.survey.channel.name
            raise DataError(f"channel {name}: {path}: {error.strerror}") from None


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(100)
    except FileNotFoundError:
        return None

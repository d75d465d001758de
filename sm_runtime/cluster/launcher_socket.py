"""The socket at which the processes that Open MPI starts ask this host's runtime to act."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile

from sm_runtime.job.errors import LaunchError
from sm_runtime.programs.launcher_stub import SOCKET

REQUEST_BYTES = 16 * 2**20
"""The most bytes of a request: an environment is smaller."""
_PEER = 12
"""The size of ``struct ucred`` (unix(7))."""


class StubConnection:
    """A process that has asked for something and waits for an answer."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._received = bytearray()
        self.heard = False
        """Whether its request is complete, so that all that can come now is its end."""

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._socket.fileno()

    def read(self) -> list[bytes] | None:
        """Return the words of the request once they are here; raises OSError when it is gone."""
        try:
            data = self._socket.recv(2**16)
        except BlockingIOError:
            return None
        if not data or self.heard:
            raise ConnectionError("the caller is gone")
        self._received += data
        size = int.from_bytes(self._received[:4], "big")
        if size > REQUEST_BYTES:
            raise ConnectionError("the request is too long")
        if len(self._received) < 4 + size:
            return None
        self.heard = True
        return bytes(self._received[4:]).split(b"\0")

    def answer(self, status: int) -> None:
        """Have the process end with ``status``."""
        with contextlib.suppress(OSError):
            self._socket.send(bytes([status & 0xFF]))

    def is_gone(self) -> bool:
        """Whether the process has ended since its request."""
        try:
            self.read()
        except OSError:
            self._socket.close()
            return True
        return False


class LauncherSocket:
    """A listening socket in a private folder, which is TMPDIR for Open MPI's own files, too."""

    def __init__(self, temporary: str | None = None) -> None:
        try:
            self.folder = tempfile.mkdtemp(prefix="sm-runtime-", dir=temporary)
        except OSError as error:
            raise LaunchError(f"no folder for temporary files: {error}") from None
        self.shared = self._shared_memory()
        self._path = os.path.join(self.folder, "door")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(self._path)
        except OSError as error:
            self.close()
            raise LaunchError(f"{self._path}: {error.strerror or error}") from None
        self._socket.listen(1024)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._socket.fileno()

    @property
    def variables(self) -> dict[str, str]:
        """What Open MPI's processes need in their environment."""
        found = {SOCKET: self._path, "TMPDIR": self.folder}
        return found | self.rank_variables

    @property
    def rank_variables(self) -> dict[str, str]:
        """What a rank needs of this host, where Open MPI brings the leader's."""
        return {"OMPI_MCA_btl_vader_backing_directory": self.shared} if self.shared else {}

    def accept(self) -> StubConnection | None:
        """Return the next stub that has connected; only processes of this user may."""
        try:
            sock, _ = self._socket.accept()
        except OSError:
            return None
        peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER)
        if int.from_bytes(peer[4:8], "little") not in (0, os.geteuid()):
            sock.close()
            return None
        return StubConnection(sock)

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

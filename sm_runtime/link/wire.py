"""A connection with a conversation on it: what both the leader and the workers do with one."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from typing import TYPE_CHECKING

from sm_runtime.link.secure import Conversation, PeerError

if TYPE_CHECKING:
    from sm_runtime.model import Json

READ_BYTES = 2**16
BACKLOG_BYTES = 8 * 2**20
"""What may wait to be sent: more than that means that the other end reads nothing."""


class Wire:
    """A non-blocking socket and the conversation on it; all errors are PeerError."""

    def __init__(self, sock: socket.socket, address: str, conversation: Conversation) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.address, self.conversation = sock, address, conversation
        self.opened = self.heard = time.monotonic()
        self.host = ""
        """The host at the other end, once it is certain."""
        self.at_home = False
        """Whether the address is known to be the host's, or need not be."""
        self.held: list[dict[str, Json]] = []
        """What came before the host was certain."""
        self._waiting = bytearray(conversation.greet())

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self.socket.fileno()

    @property
    def interest(self) -> int:
        """What to poll for."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._waiting else 0)

    def send(self, message: dict[str, Json]) -> None:
        """Queue a message, and send what goes at once."""
        self._waiting += self.conversation.write(message)
        self.flush()

    def flush(self) -> None:
        """Send what the connection takes now."""
        try:
            while self._waiting:
                count = self.socket.send(self._waiting)
                del self._waiting[:count]
        except BlockingIOError:
            if len(self._waiting) > BACKLOG_BYTES:
                raise PeerError("it reads nothing") from None
        except OSError as error:
            raise PeerError(f"the connection broke ({error.strerror})") from None

    def receive(self) -> list[dict[str, Json]]:
        """Return the messages that have come by now."""
        try:
            data = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise PeerError(f"the connection broke ({error.strerror})") from None
        if not data:
            raise PeerError("the connection was closed")
        self.heard = time.monotonic()
        return self.conversation.read(data)

    def is_silent(self, seconds: float) -> bool:
        """Return whether nothing has been received for so long."""
        return time.monotonic() - self.heard > seconds

    def close(self) -> None:
        """Send what goes, and close."""
        with contextlib.suppress(PeerError):
            self.flush()
        self.socket.close()

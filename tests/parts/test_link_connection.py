"""A connection between two hosts, with an attacker in the middle of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

import pytest

from sm_runtime.cluster import connection
from sm_runtime.cluster.connection import Connection, PeerError, SecretError

SECRET = b"x" * 32
GREETINGS = ({"host": "algo-1"}, {"host": "algo-2"})


class Pipe:
    """Stands in for a stream: what is written at one end, and not yet delivered to the other."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.backlog = 0
        self.transport = self

    def get_extra_info(self, name: str) -> Any:
        return ("10.0.0.1", 7117) if name == "peername" else None

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def get_write_buffer_size(self) -> int:
        return self.backlog


class Pair:
    """The leader's end and a worker's; ``deliver`` brings what one has written to the other."""

    def __init__(self, *secrets: bytes) -> None:
        self.pipes, self.readers = (Pipe(), Pipe()), []
        self.ends = []
        for pipe, secret in zip(self.pipes, secrets, strict=True):
            reader = asyncio.StreamReader(limit=connection.GREETING_BYTES)
            self.readers.append(reader)
            self.ends.append(Connection(reader, cast("asyncio.StreamWriter", pipe), secret))

    @property
    def leader(self) -> Connection:
        return self.ends[0]

    @property
    def worker(self) -> Connection:
        return self.ends[1]

    def deliver(self, origin: int, *pieces: bytes) -> None:
        for piece in pieces or self.pipes[origin].pieces:
            self.readers[1 - origin].feed_data(piece)
        self.pipes[origin].pieces.clear()

    def sent(self, origin: int, *messages: Any) -> list[bytes]:
        """Send messages; return their bytes, which are not delivered."""
        for message in messages:
            self.ends[origin].send(message)
        pieces = self.pipes[origin].pieces[:]
        self.pipes[origin].pieces.clear()
        return pieces

    async def greet(self) -> Pair:
        tasks = [
            asyncio.ensure_future(end.exchange_greetings(own, accept, leads=own is GREETINGS[0]))
            for end, own in zip(self.ends, GREETINGS, strict=True)
        ]
        await asyncio.sleep(0)
        self.deliver(0)
        self.deliver(1)
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(found, BaseException):
                raise found
        return self


def accept(greeting: Any) -> None:
    """Take whoever it is."""


def run(test: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(test(), 10))


@pytest.mark.parametrize("secret", [SECRET, b""], ids=["secret", "none"])
def test_messages_arrive_in_their_order_in_both_directions(secret: bytes) -> None:
    async def test() -> None:
        pair = await Pair(secret, secret).greet()
        assert (pair.leader.greeting["host"], pair.worker.greeting["host"]) == ("algo-2", "algo-1")
        for origin in (0, 1):
            messages = [{"n": number, "text": "é\n"} for number in range(3)]
            whole = b"".join(pair.sent(origin, *messages))
            assert not secret or secret not in whole
            pair.deliver(origin, *(whole[at : at + 7] for at in range(0, len(whole), 7)))
            found = [await pair.ends[1 - origin].receive() for _ in messages]
            assert found == messages

    run(test)


def forged(pieces: list[bytes], own: list[bytes], other: list[bytes]) -> dict[str, list[bytes]]:
    """Return what an attacker may deliver in place of three messages that follow a first one."""
    one, two, three = pieces
    return {
        "altered": [one[:-2] + bytes([one[-2] ^ 1]) + one[-1:]],
        "an altered code": [one[:4] + bytes([one[4] ^ 1]) + one[5:]],
        "replayed": [one, one],
        "left out": [two],
        "in another order": [one, three],
        "sent back": own,
        "of another connection": other,
        "without a code": [one[:4] + one[36:] + bytes(32)],
    }


@pytest.mark.parametrize("how", forged([b"x" * 64] * 3, [], []))
def test_a_message_that_the_other_end_has_not_sent_so_is_refused(how: str) -> None:
    async def test() -> None:
        pair = await Pair(SECRET, SECRET).greet()
        other = await Pair(SECRET, SECRET).greet()
        for both in (pair, other):
            both.deliver(0, *both.sent(0, {"type": "first"}))
            assert await both.worker.receive() == {"type": "first"}
        messages = [{"n": number} for number in range(3)]
        own = pair.sent(1, {"n": 0}, {"n": 0})[1:]  # as many as the leader has sent
        wrong = forged(pair.sent(0, *messages), own, other.sent(0, {"n": 0}))[how]
        pair.deliver(0, *wrong)
        with pytest.raises(PeerError, match="not authentic"):
            for _ in wrong:
                await pair.worker.receive()

    run(test)


def test_an_altered_greeting_shows_in_the_first_message() -> None:
    async def test() -> None:
        pair = Pair(SECRET, SECRET)
        tasks = [
            asyncio.ensure_future(end.exchange_greetings(own, accept, leads=own is GREETINGS[0]))
            for end, own in zip(pair.ends, GREETINGS, strict=True)
        ]
        await asyncio.sleep(0)
        pair.deliver(1, *(piece.replace(b"algo-2", b"algo-3") for piece in pair.pipes[1].pieces))
        pair.deliver(0)
        await asyncio.gather(*tasks)
        pair.deliver(1, *pair.sent(1, {"type": "hello"}))
        with pytest.raises(SecretError, match="does not have the same"):
            await pair.leader.receive()

    run(test)


def test_another_secret_shows_in_the_first_message() -> None:
    async def test() -> None:
        pair = await Pair(SECRET, b"y" * 32).greet()
        for origin in (0, 1):
            pair.deliver(origin, *pair.sent(origin, {"type": "hello"}))
            with pytest.raises(SecretError, match="the same SM_RUNTIME_CLUSTER_SECRET"):
                await pair.ends[1 - origin].receive()

    run(test)


@pytest.mark.parametrize("secrets", [(SECRET, b""), (b"", SECRET)])
def test_a_secret_at_one_end_only_shows_in_the_greetings(secrets: tuple[bytes, bytes]) -> None:
    async def test() -> None:
        with pytest.raises(SecretError, match="has an SM_RUNTIME_CLUSTER_SECRET and"):
            await Pair(*secrets).greet()

    run(test)


@pytest.mark.parametrize(
    ("greeting", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "malformed message"),
        (b"[]\n", "malformed message"),
        (b"[" * 4000 + b"\n", "malformed message"),
        (b"\xff\n", "malformed message"),
        (b"{}\n", "it speaks 'None' and not 'sm-runtime/2'"),
        (b'{"protocol": "sm-runtime/1"}\n', "it speaks 'sm-runtime/1'"),
        (b"x" * 5000, "unexpected data"),
        (b"x" * 5000 + b"\n", "unexpected data"),
        (b"", "the connection was closed"),
        (b'{"protocol"', "the connection was closed"),
    ],
    ids=range(10),
)
def test_what_is_no_greeting_is_refused(greeting: bytes, why: str) -> None:
    async def test() -> None:
        pair = Pair(SECRET, SECRET)
        pair.readers[0].feed_data(greeting)
        pair.readers[0].feed_eof()
        with pytest.raises(PeerError, match=why):
            await pair.leader.exchange_greetings({}, accept, leads=True)

    run(test)


def test_a_greeting_is_examined_before_anything_is_made_of_it() -> None:
    def refuse(greeting: Any) -> None:
        raise PeerError(f"not {greeting['host']}")

    async def test() -> None:
        pair = Pair(SECRET, b"")
        own = {"protocol": connection.PROTOCOL, "host": "algo-9"}
        pair.readers[0].feed_data(json.dumps(own).encode() + b"\n")
        with pytest.raises(PeerError, match="not algo-9"):
            await pair.leader.exchange_greetings({}, refuse, leads=True)

    run(test)


def test_messages_are_short_before_admission_and_not_endless_after_it() -> None:
    async def test() -> None:
        pair = await Pair(b"", b"").greet()
        long = {"text": "x" * connection.GREETING_BYTES}
        pair.worker.limit_bytes = connection.MESSAGE_BYTES
        pair.deliver(0, *pair.sent(0, long))
        assert await pair.worker.receive() == long
        pair.deliver(1, *pair.sent(1, long))
        with pytest.raises(PeerError, match="unexpected data"):
            await pair.leader.receive()
        with pytest.raises(PeerError, match="is too long"):
            pair.leader.send({"text": "x" * connection.MESSAGE_BYTES})

    run(test)


def test_an_end_that_does_not_read_is_given_up() -> None:
    async def test() -> None:
        pair = await Pair(b"", b"").greet()
        pair.pipes[0].backlog = connection.BACKLOG_BYTES + 1
        with pytest.raises(PeerError, match="it does not read"):
            pair.leader.send({})

    run(test)


def test_an_end_that_sends_nothing_is_silent() -> None:
    async def test() -> None:
        pair = await Pair(b"", b"").greet()
        pair.deliver(0, *pair.sent(0, {}))
        assert await pair.worker.receive_within(0.0) == {}
        with pytest.raises(PeerError, match=r"it has been silent for 0\.01 s"):
            await pair.worker.receive_within(0.01)

    run(test)

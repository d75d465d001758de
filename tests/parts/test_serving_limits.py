"""What the front of ``serve`` takes of a client: sizes, times, and how much of all at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sm_runtime.serving import asgi
from sm_runtime.serving.asgi import Bodies, Server, send_answer
from sm_runtime.serving.values import Answer, RequestError, error_answer

POST = b"POST / HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"


class Front:
    """Answers a body with its length; a GET waits until it is let go."""

    def __init__(self, limit: int | None = 10_000_000) -> None:
        self.bodies = Bodies(limit)
        self.go = asyncio.Event()
        self.begun = 0
        self.statuses: list[int] = []
        self.address: tuple[str, int] = ("", 0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun += 1
        try:
            body = await self.bodies.read(scope, receive)
            with self.bodies.held(len(body)):
                if scope["method"] == "GET":
                    await self.go.wait()
                answer = Answer(body=b"%d" % len(body))
        except RequestError as error:
            answer = error_answer(error.status, str(error))
        self.statuses.append(answer.status)
        await send_answer(scope, send, answer, close=answer.status >= 400)

    async def ask(self, *pieces: bytes, pause: float = 0.0) -> tuple[int, bytes]:
        """Send a request in pieces; return status and body of the last of its answers."""
        reader, writer = await asyncio.open_connection(*self.address)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause)
        status, body = await answered(reader)
        writer.close()
        return status, body


async def answered(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
    return int(head.split()[1]), await reader.readexactly(length)


@contextlib.asynccontextmanager
async def fronted(front: Front) -> AsyncIterator[Front]:
    listener = socket.create_server(("127.0.0.1", 0))
    front.address = listener.getsockname()
    server = Server(front, [listener])
    serving = asyncio.create_task(server.run_until_closed())
    yield front
    front.go.set()
    server.force_exit = server.should_exit = True
    await serving


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_headers_that_do_not_come_to_an_end_are_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "HEADER_SECONDS", 0.2)

    async def main() -> None:
        async with fronted(Front()) as front:
            status, body = await front.ask(POST)
            assert (status, "headers were not complete in 0.2 s" in json.loads(body)["error"]) == (
                408,
                True,
            )
            reader, writer = await asyncio.open_connection(*front.address)
            assert await reader.read() == b""  # who says nothing is told nothing
            writer.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "head", [POST + b"content-length: 100\r\n\r\n", CHUNKED], ids=["known length", "chunked"]
)
def test_a_body_that_stands_still_is_408(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.2)

    async def main() -> None:
        async with fronted(Front()) as front:
            status, body = await front.ask(head, chunk(b"x" * 20))
            assert (status, "came too slowly" in json.loads(body)["error"]) == (408, True)

    asyncio.run(main())


def test_a_body_may_take_long_as_long_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many times what it may stand still: a second for each 128 KiB is its own."""
    monkeypatch.setattr(asgi, "BODY_SECONDS", 1.0)
    pieces = [chunk(b"x" * 2**17) for _ in range(40)]

    async def main() -> None:
        async with fronted(Front(None)) as front:
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert await front.ask(CHUNKED, *pieces, b"0\r\n\r\n", pause=0.05) == (
                200,
                b"%d" % (40 * 2**17),
            )
            assert loop.time() - began > 2 * asgi.BODY_SECONDS

    asyncio.run(main())


def test_a_body_that_trickles_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client always says something, but less than a body needs."""
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.5)

    async def main() -> None:
        async with fronted(Front(None)) as front:
            _, writer = await asyncio.open_connection(*front.address)
            writer.write(CHUNKED)
            while not front.statuses:
                writer.write(chunk(b"x"))
                await asyncio.sleep(0.02)
            assert front.statuses == [408]
            writer.transport.abort()

    asyncio.run(main())


def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    async def main() -> None:
        async with fronted(Front()) as front:
            reader, writer = await asyncio.open_connection(*front.address)
            writer.write(POST + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\n")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
            assert head.startswith(b"HTTP/1.1 100")
            writer.write(b"hello")
            assert await answered(reader) == (200, b"5")
            writer.close()

    asyncio.run(main())


def test_a_client_that_asks_first_is_refused_before_it_sends() -> None:
    async def main() -> None:
        async with fronted(Front(1000)) as front:
            head = POST + b"expect: 100-continue\r\ncontent-length: 5000\r\n\r\n"
            status, body = await front.ask(head)
            assert (status, "1000 are allowed" in json.loads(body)["error"]) == (413, True)

    asyncio.run(main())


@pytest.mark.parametrize("limit", [10_000_000, None], ids=["limit", "no limit"])
def test_bodies_of_any_length_are_taken_where_there_is_no_limit(limit: int | None) -> None:
    async def main() -> None:
        async with fronted(Front(limit)) as front:
            data = bytes(20_000_000)
            status, body = await front.ask(CHUNKED, chunk(data), b"0\r\n\r\n")
            assert (status, body if limit is None else b"") == (
                (200, b"20000000") if limit is None else (413, b"")
            )

    asyncio.run(main())


@pytest.mark.parametrize("chunked", [False, True], ids=["known length", "chunked"])
def test_bodies_that_are_too_many_together_are_503(
    monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    monkeypatch.setattr(asgi, "BUFFERED_BYTES", 1_000_000)

    def request(method: bytes, size: int) -> bytes:
        head = method + b" / HTTP/1.1\r\nhost: x\r\n"
        if chunked:
            parts = chunk(bytes(size // 2)) * 2 + b"0\r\n\r\n"
            return head + b"transfer-encoding: chunked\r\n\r\n" + parts
        return head + b"content-length: %d\r\n\r\n" % size + bytes(size)

    async def main() -> None:
        async with fronted(Front(400_000)) as front:
            waiting = [asyncio.create_task(front.ask(request(b"GET", 380_000))) for _ in range(2)]
            while front.bodies._held < 760_000:
                await asyncio.sleep(0.01)
            status, body = await front.ask(request(b"POST", 380_000))
            assert (status, "too many large requests" in json.loads(body)["error"]) == (503, True)
            assert await front.ask(request(b"POST", 1000)) == (200, b"1000")
            front.go.set()
            assert await asyncio.gather(*waiting) == [(200, b"380000")] * 2
            assert await front.ask(request(b"POST", 380_000)) == (200, b"380000")
            assert front.bodies._held == 0

    asyncio.run(main())


def test_headers_behind_a_request_under_way_have_the_same_limit() -> None:
    """The request is answered, then the connection ends; until then little of them is read."""

    async def main() -> None:
        async with fronted(Front()) as front:
            reader, writer = await asyncio.open_connection(*front.address)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            while not front.begun:
                await asyncio.sleep(0.01)
            writer.write(b"GET / HTTP/1.1\r\nx: ")
            for _ in range(32):
                writer.write(b"y" * 2**20)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(writer.drain(), 1)
            assert writer.transport.get_write_buffer_size() > 2**20  # it is held back
            front.go.set()
            with contextlib.suppress(ConnectionError):  # what it still sends may reset it
                assert (await asyncio.wait_for(reader.read(), 30)).count(b"HTTP/1.1") == 2
            assert front.begun == 1
            writer.transport.abort()

    asyncio.run(main())


def test_a_line_end_behind_a_long_body_is_no_header() -> None:
    async def main() -> None:
        async with fronted(Front()) as front:
            body = bytes(300_000)
            first = POST + b"content-length: 300000\r\n\r\n" + body
            reader, writer = await asyncio.open_connection(*front.address)
            for _ in range(2):
                writer.write(first)
                assert await answered(reader) == (200, b"300000")
                writer.write(b"\r\n")
                await asyncio.sleep(0.05)
            writer.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "end", [b"0\r\nx-more: " + b"a" * 66_000, b"1;" + b"a" * 66_000], ids=["trailer", "extension"]
)
def test_what_is_between_the_parts_of_a_body_is_limited(end: bytes) -> None:
    async def main() -> None:
        async with fronted(Front(None)) as front:
            reader, writer = await asyncio.open_connection(*front.address)
            writer.write(CHUNKED + chunk(b"x" * 100_000))
            while not front.begun:
                await asyncio.sleep(0.01)
            writer.write(end)
            status, body = await answered(reader)
            assert status == 431
            assert "between parts of the body" in json.loads(body)["error"]
            writer.close()

    asyncio.run(main())


class Large(Front):
    """Answers with three megabytes."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send_answer(scope, send, Answer(body=b"y" * 3_000_000))


def test_a_long_answer_comes_after_its_headers() -> None:
    async def main() -> None:
        async with fronted(Large()) as front:
            answer = await front.ask(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert answer == (200, b"y" * 3_000_000)

    asyncio.run(main())

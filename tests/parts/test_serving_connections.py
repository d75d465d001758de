"""Connections as the front of ``serve`` has them, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import weakref
from typing import Any

import pytest

from sm_runtime.serving.asgi import Server, send_answer
from sm_runtime.serving.values import Answer

REQUEST = b"GET /ping HTTP/1.1\r\nhost: x\r\n\r\n"


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send_answer(scope, send, Answer(body=b"whole"))


async def until(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to pass")


async def forget(*, reset: bool) -> None:
    """Have clients end their connections, and wait until none of them is in memory."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(answer, [listener])
    serving = asyncio.create_task(server.run_until_closed())
    clients = []
    for _ in range(5):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(REQUEST)
        await reader.readuntil(b"whole")
        clients.append(writer)
    held = [weakref.ref(each) for each in server.server_state.connections]
    assert len(held) == 5
    for writer in clients:
        if reset:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
    await until(lambda: not server.server_state.connections)
    await until(lambda: gc.collect() >= 0 and not any(each() for each in held))
    server.should_exit = True
    await serving


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_connection_that_a_client_ends_is_forgotten(reset: bool) -> None:
    asyncio.run(forget(reset=reset))

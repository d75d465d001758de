"""A client that is none of a job's hosts connects to its port."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from sm_runtime.cluster import connection
from sm_runtime.cluster.connection import PROTOCOL
from sm_runtime.cluster.link import Link
from sm_runtime.cluster.ranks import LauncherSocket
from sm_runtime.processes.workload import Disconnected, Requested
from sm_runtime.programs.launcher_stub import SOCKET
from tests import links
from tests.harness import eventually
from tests.links import ONE, PAIR, SECRET, Hosts

ELSEWHERE = "127.0.0.9"
"""The address of a client to which the name of no host resolves."""
HTTP = b"GET / HTTP/1.1\r\nHost: algo-1\r\n\r\n"
TLS = bytes.fromhex("16030100c8010000c40303") + b"\0" * 189
NOISE = bytes(range(256)) * 1024
LONG = b"\xff\xff\xff\xff" + b"x" * 100_000
ROWS = b"\0\0\0\x02{}" * 50
NESTED = b"[" * 4000 + b"\n"
LIST = b"[]\n"
KNOCK = """
import os, socket, sys
os.setuid(65534)
listener = socket.socket(socket.AF_UNIX)
listener.connect(sys.argv[1])
print(listener.recv(1))
"""
"""Connects as another user."""


@pytest.fixture(params=[SECRET, b""], ids=["secret", "none"])
def waiting(request: pytest.FixtureRequest) -> Iterator[Link]:
    """Yield a leader whose other host comes after the test; nothing but that may have happened."""
    with closing(Hosts()) as made:
        options = {"secret": request.param, "greeting_seconds": 0.5}
        leader = made.add(links.config(ONE, PAIR, **options))
        leader.ready({})
        yield leader
        assert leader.state.failure is None
        made.add(links.config(PAIR[1], PAIR, **options)).ready({})
        made.all(lambda link: link.state.start, "all start")


def answers(leader: Link, *sent: bytes) -> list[bytes]:
    """Return what the leader says to clients until it closes their connections, at once."""
    address = (ONE, leader.config.port)
    clients = [socket.create_connection(address, 10, (ELSEWHERE, 0)) for _ in sent]
    found = []
    for client, data in zip(clients, sent, strict=True):
        with client:
            heard = b""
            try:
                client.sendall(data)
                while more := client.recv(65536):
                    heard += more
            except ConnectionError:
                pass
            found.append(heard)
    return found


def greeting(leader: Link, host: str, *, secret: bool, protocol: str = PROTOCOL) -> bytes:
    """Return the greeting of a client that says that it is ``host``."""
    own = {**leader.config.greeting(), "host": host, "protocol": protocol}
    return json.dumps({**own, "nonce": "0" * 32, "secret": secret}).encode() + b"\n"


def hello(leader: Link, tag: bytes = b"") -> bytes:
    """Return the first message after a greeting, with an authentication code or without."""
    body = json.dumps(leader.config.hello()).encode()
    return struct.pack(">I", len(body)) + tag + body


@pytest.mark.parametrize(
    "data",
    [b"", HTTP, TLS, NOISE, LONG, ROWS, NESTED, LIST],
    ids=["nothing", "http", "tls", "noise", "long", "rows", "nested", "list"],
)
def test_garbage_is_answered_by_a_greeting_at_most(waiting: Link, data: bytes) -> None:
    [heard] = answers(waiting, data)
    assert len(heard) < 2048
    assert SECRET not in heard


def test_a_client_that_says_that_it_is_a_host_is_not_admitted(waiting: Link) -> None:
    claims = [
        greeting(waiting, host, secret=secret) + message
        for host in (*PAIR, "another")
        for secret in (True, False)
        for message in (b"", hello(waiting), hello(waiting, bytes(32)), LONG, b"\0\0\0\0" * 20)
    ]
    for heard in answers(waiting, *claims):
        assert b"welcome" not in heard


def test_another_version_of_the_protocol_is_refused_by_name(waiting: Link) -> None:
    [heard] = answers(waiting, greeting(waiting, PAIR[1], secret=True, protocol="sm-runtime/99"))
    assert f"it speaks 'sm-runtime/99' and not '{PROTOCOL}'".encode() in heard


def test_a_client_with_another_secret_from_another_address_fails_no_job(waiting: Link) -> None:
    has_secret = bool(waiting.config.secret)
    [heard] = answers(waiting, greeting(waiting, PAIR[1], secret=not has_secret))
    assert b"SM_RUNTIME_CLUSTER_SECRET" in heard


def test_clients_that_are_not_admitted_cause_few_lines(
    waiting: Link, caplog: pytest.LogCaptureFixture
) -> None:
    answers(waiting, *[HTTP] * 40)
    eventually(
        lambda: caplog.messages[-1:] == ["no more connections that are closed are logged"], ""
    )
    assert len(caplog.messages) == connection.MAX_LINES + 1


@pytest.mark.parametrize("secret", [SECRET, b""], ids=["secret", "none"])
def test_a_flood_of_connections_keeps_no_host_out(secret: bytes) -> None:
    with closing(Hosts()) as made, ExitStack() as held:
        leader = made.add(links.config(ONE, PAIR, secret=secret))
        for _ in range(2 * connection.MAX_CLIENTS):
            client = socket.create_connection((ONE, leader.config.port), 10, (ELSEWHERE, 0))
            held.enter_context(client)
        made.add(links.config(PAIR[1], PAIR, secret=secret))
        for link in made.links.values():
            link.ready({})
        made.all(lambda link: link.state.start, "all start")


def test_the_listener_of_a_host_is_its_own_users() -> None:
    if os.geteuid() != 0:
        pytest.fail("needs root, to be somebody else")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        listener = LauncherSocket(folder)
        path = listener.variables[SOCKET]
        assert Path(listener.folder).stat().st_mode & 0o777 == 0o700
        os.chmod(listener.folder, 0o755)  # as if that had not been enough
        os.chmod(path, 0o777)
        words = [sys.executable, "-c", KNOCK, path]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
            eventually(
                lambda: list(listener.events()) or other.poll() is not None, "he is sent away", 30
            )
            assert other.stdout
            assert other.stdout.read() == b"b''\n"
        with socket.socket(socket.AF_UNIX) as own:
            own.connect(path)
            own.sendall(len(b"agent").to_bytes(4, "big") + b"agent")
            [asked] = listener.events()
            assert asked == Requested(asked.connection, (b"agent",))
        assert list(listener.events()) == [Disconnected(asked.connection)]
        listener.close()

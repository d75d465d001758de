"""A stranger on the network of a job, who connects to its port and means no good."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sm_runtime.door import Door
from sm_runtime.link.connection import PROTOCOL
from sm_runtime.programs.knock import DOOR
from tests import hosts, netns
from tests.harness import eventually
from tests.hosts import HELLO, SECRET, WAITS, Cluster, logs, statuses

PORT = 7117
CONNECT = """
import json, socket, sys
spec = json.load(sys.stdin)
connections = []
for data in spec["send"]:
    connection = socket.create_connection((spec["address"], spec["port"]), 5)
    try:
        connection.sendall(bytes.fromhex(data))
    except OSError:
        pass
    connections.append(connection)
print("connected", flush=True)
if spec["hold"]:
    sys.stdin.close()
    import signal
    signal.pause()
heard = []
for connection in connections:
    connection.settimeout(30)
    got = b""
    try:
        while data := connection.recv(65536):
            got += data
        closed = True
    except ConnectionError:
        closed = True
    except TimeoutError:
        closed = False
    heard.append((got.hex(), closed))
print(json.dumps(heard))
"""
"""Sends some bytes on each of several connections; says what each heard until it was closed."""

KNOCK = """
import os, socket, sys
os.setuid(65534)
door = socket.socket(socket.AF_UNIX)
door.connect(sys.argv[1])
print(door.recv(1))
"""
"""Knocks as somebody else."""

HTTP = b"GET / HTTP/1.1\r\nHost: algo-1\r\n\r\n"
TLS = bytes.fromhex("16030100c8010000c40303") + b"\0" * 189
NOISE = bytes(range(256)) * 1024
LONG = b"\xff\xff\xff\xff" + b"x" * 100_000
ROWS = b"\0\0\0\x02{}" * 50


@pytest.fixture(scope="module")
def network() -> Iterator[netns.Network]:
    with netns.network(["algo-1", "algo-2", "stranger"]) as made:
        yield made


@pytest.fixture(params=["secret", "no secret"])
def cluster(
    network: netns.Network, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Cluster]:
    if not network.isolated and request.param == "no secret":
        pytest.fail("needs network namespaces: a stranger has an address of his own")
    with hosts.cluster(tmp_path, network, 2) as made:
        if request.param == "no secret":
            for base in made.bases:
                del base.environ["SM_RUNTIME_CLUSTER_SECRET"]
        yield made


@contextmanager
def stranger(
    cluster: Cluster, *send: bytes, port: int = PORT, hold: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run somebody who sends each of ``send`` on a connection of its own."""
    host = cluster.network.hosts[2]
    spec = {
        "address": cluster.hosts[0].address,
        "port": port,
        "send": [data.hex() for data in send],
        "hold": hold,
    }
    with subprocess.Popen(
        [*host.prefix, sys.executable, "-c", CONNECT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(spec).encode())
        process.stdin.close()
        try:
            assert process.stdout.readline() == b"connected\n"
            yield process
        finally:
            process.kill()


def waiting_leader(cluster: Cluster, script: str = HELLO) -> None:
    """Start the leader, which waits for the other host and listens."""
    cluster.script(script).start(0)
    leader = cluster.hosts[0]
    eventually(lambda: (leader.address, PORT) in leader.listeners(), "the leader listens", 60)


def greeting(host: str, job: str, *, secret: bool) -> bytes:
    """Return the first bytes of somebody who says that he is ``host``."""
    own = {"protocol": PROTOCOL, "host": host, "job": job, "nonce": "0" * 32, "secret": secret}
    return json.dumps(own).encode() + b"\n"


def hello(tag: bytes = b"") -> bytes:
    """Return the first message after the greeting, with an authentication code or without."""
    body = json.dumps({"type": "hello"}).encode()
    return struct.pack(">I", len(body)) + tag + body


@pytest.mark.parametrize(
    "data",
    [b"", HTTP, TLS, NOISE, LONG, ROWS],
    ids=["nothing", "http", "tls", "noise", "long", "rows"],
)
def test_who_sends_garbage_gets_nothing_and_breaks_nothing(cluster: Cluster, data: bytes) -> None:
    waiting_leader(cluster)
    with stranger(cluster, data) as process:
        assert process.stdout
        [(heard, closed)] = json.loads(process.stdout.readline())
    assert closed  # also who says nothing: he has ten seconds
    assert len(heard) // 2 < 2048  # the leader's greeting, at most
    assert SECRET.encode().hex() not in heard
    results = cluster.start(1).wait()
    assert statuses(results) == [0, 0], logs(results)


def test_who_holds_a_hundred_connections_keeps_no_host_out(cluster: Cluster) -> None:
    waiting_leader(cluster)
    with stranger(cluster, *[b""] * 100, hold=True):
        results = cluster.start(1).wait()
    assert statuses(results) == [0, 0], logs(results)


def test_who_says_that_he_is_a_host_is_none(cluster: Cluster) -> None:
    waiting_leader(cluster)
    with stranger(cluster, b"") as process:
        assert process.stdout
        [(heard, _)] = json.loads(process.stdout.readline())
    # What the leader says of itself names the job: all that a stranger can learn.
    job = json.loads(bytes.fromhex(heard))["job"]
    claims = [
        greeting(host.name, job, secret=secret) + message
        for host in cluster.hosts
        for secret in (True, False)
        for message in (b"", hello(), hello(bytes(32)))
    ]
    with stranger(cluster, *claims) as process:
        assert process.stdout
        for heard, closed in json.loads(process.stdout.readline()):
            assert closed
            assert "welcome" not in bytes.fromhex(heard).decode(errors="replace")
    results = cluster.start(1).wait()
    assert statuses(results) == [0, 0], logs(results)


def test_nobody_listens_any_more_when_all_hosts_have_come(cluster: Cluster) -> None:
    cluster.script(WAITS).start().ready()
    for host in cluster.hosts:
        assert not [port for _, port in host.listeners() if PORT <= port < PORT + 10]
    for running in cluster.running.values():
        running.process.terminate()
    results = cluster.wait()
    assert statuses(results) == [0, 0], logs(results)


def test_the_leader_listens_on_the_jobs_interface_only(cluster: Cluster) -> None:
    waiting_leader(cluster)
    leader = cluster.hosts[0]
    assert {address for address, port in leader.listeners() if port == PORT} == {leader.address}
    results = cluster.start(1).wait()
    assert statuses(results) == [0, 0], logs(results)


def test_the_door_of_a_host_is_its_own_users() -> None:
    if os.geteuid() != 0:
        pytest.fail("needs root, to be somebody else")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        door = Door(folder)
        path = door.variables[DOOR]
        assert Path(door.folder).stat().st_mode & 0o777 == 0o700
        os.chmod(door.folder, 0o755)  # as if that had not been enough
        os.chmod(path, 0o777)
        words = [sys.executable, "-c", KNOCK, path]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
            eventually(lambda: door.accept() or other.poll() is not None, "he is sent away", 30)
            assert other.stdout
            assert other.stdout.read() == b"b''\n"
        with socket.socket(socket.AF_UNIX) as own:
            own.connect(path)
            caller = door.accept()
        assert caller is not None
        eventually(caller.is_gone, "it has gone", 30)
        door.close()

"""Objects are read and written over TLS, and only where the certificate is good."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sm_runtime.job.errors import DataError
from sm_runtime.storage import Origin, open_origin, open_store
from tests.s3 import CREDENTIALS, Server, serving

LARGE = os.urandom(20 << 20)
SMALL = {f"d/{number:02}": os.urandom(5000 + number) for number in range(30)}


@dataclass
class Gate:
    """What listens before a server, and what it has heard."""

    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    stalled: int = 0
    """How many connections stop moving, from now on, after 100,000 bytes."""
    ended: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def listening(serve: Callable[[Gate, socket.socket], None]) -> Iterator[Gate]:
    gate, threads = Gate(), list[threading.Thread]()

    def accept() -> None:
        while not gate.ended.is_set():
            if select.select([listener], [], [], 0.05)[0]:
                line, _ = listener.accept()
                threads.append(threading.Thread(target=work, args=(line,)))
                threads[-1].start()

    def work(line: socket.socket) -> None:
        with contextlib.suppress(OSError), line:
            serve(gate, line)

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        gate.port = listener.getsockname()[1]
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield gate
        finally:
            gate.ended.set()
            accepting.join()
            for thread in threads:
                thread.join()


def pump(gate: Gate, client: socket.socket, upstream: socket.socket) -> None:
    """Carry bytes both ways until one side closes."""
    is_stalling, carried = False, 0
    if gate.stalled:
        gate.stalled -= 1
        is_stalling = True
    with upstream:
        while not gate.ended.is_set():
            waiting = client.pending() if isinstance(client, ssl.SSLSocket) else 0
            ready = [client] if waiting else select.select([client, upstream], [], [], 0.05)[0]
            for source in ready:
                data = source.recv(1 << 16)
                if not data:
                    return
                if source is upstream:
                    carried += len(data)
                    if is_stalling and carried > 100_000:
                        gate.ended.wait(60)
                        return
                (upstream if source is client else client).sendall(data)


@pytest.fixture(scope="module", params=["server", "CA"])
def certificate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, which signs itself; its key is beside it.

    One that says to be a CA, as `openssl req -x509` makes it, is refused by the TLS of obstore.
    """
    path = tmp_path_factory.mktemp("tls") / "certificate"
    is_ca = str(request.param == "CA").upper()
    subprocess.run(
        ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1", "-addext", f"basicConstraints=critical,CA:{is_ca}",
         "-out", path, "-keyout", f"{path}.key"),
        check=True,
        capture_output=True,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3") / "buckets") as found:
        for key, content in {**SMALL, "large": LARGE}.items():
            found.put(f"s3://b/{key}", content)
        yield found


@pytest.fixture
def gate(server: Server, certificate: Path) -> Iterator[Gate]:
    """Ends TLS before the server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, f"{certificate}.key")
    host, _, port = server.url.removeprefix("http://").partition(":")

    def serve(gate: Gate, line: socket.socket) -> None:
        with context.wrap_socket(line, server_side=True) as client:
            pump(gate, client, socket.create_connection((host, int(port))))

    with listening(serve) as found:
        yield found


def environ_of(gate: Gate, certificate: Path, **more: str) -> dict[str, str]:
    return {
        **CREDENTIALS,
        "S3_ENDPOINT_URL": f"https://127.0.0.1:{gate.port}",
        "AWS_CA_BUNDLE": str(certificate),
        "AWS_MAX_ATTEMPTS": "3",
        "HOME": "/nonexistent",
        **more,
    }


def fetch(origin: Origin, prefix: str, target: Path) -> None:
    with contextlib.closing(origin):
        found = list(origin.list(f"s3://b/{prefix}"))
        origin.fetch((blob, str(target / blob.key)) for blob in found)
    wanted = {
        key: text for key, text in {**SMALL, "large": LARGE}.items() if key.startswith(prefix)
    }
    assert {key: (target / key).read_bytes() for key in wanted} == wanted


@pytest.mark.parametrize("prefix", ["d/", "large"])
@pytest.mark.parametrize("stalled", [0, 2])
def test_objects_are_fetched_over_tls(
    gate: Gate, certificate: Path, tmp_path: Path, prefix: str, stalled: int
) -> None:
    gate.stalled = stalled
    environ = environ_of(gate, certificate, AWS_MAX_ATTEMPTS="8")
    fetch(open_origin("s3://b", environ, "eu-west-1", stall_seconds=1), prefix, tmp_path)


@pytest.mark.parametrize("size", [10, len(LARGE)])
def test_objects_are_written_over_tls(
    gate: Gate, certificate: Path, server: Server, size: int
) -> None:
    environ = environ_of(gate, certificate)
    with (
        contextlib.closing(open_store("s3://b/up", environ=environ, region="eu-west-1")) as store,
        store.stream(f"of-{size}") as sink,
    ):
        sink.write(LARGE[:size])
    assert (server.folder / f"b/up/of-{size}").read_bytes() == LARGE[:size]


def test_a_certificate_that_nobody_vouches_for_is_refused(
    gate: Gate, certificate: Path, tmp_path: Path
) -> None:
    environ = environ_of(gate, certificate)
    del environ["AWS_CA_BUNDLE"]
    with pytest.raises(DataError, match=r"s3://b/ cannot be listed: .*certificate verify failed"):
        fetch(open_origin("s3://b", environ, "eu-west-1"), "", tmp_path)


def test_a_certificate_for_another_host_is_refused(
    gate: Gate, certificate: Path, tmp_path: Path
) -> None:
    where = f"https://localhost:{gate.port}"
    environ = environ_of(gate, certificate, S3_ENDPOINT_URL=where)
    with pytest.raises(DataError, match=r"s3://b/ cannot be listed: .*'localhost' doesn't match"):
        fetch(open_origin("s3://b", environ, "eu-west-1"), "", tmp_path)


def test_a_bundle_that_is_not_there_is_an_error(gate: Gate, tmp_path: Path) -> None:
    environ = environ_of(gate, tmp_path / "absent")
    with pytest.raises(DataError, match=r"s3://b/ cannot be listed: .*No such file"):
        fetch(open_origin("s3://b", environ, "eu-west-1"), "", tmp_path)


def tunnel(gate: Gate, line: socket.socket) -> None:
    """Answer CONNECT as a proxy does that wants to know who asks."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += line.recv(4096)
    gate.heads.append(head)
    if b"proxy-authorization: basic dtpw\r\n" not in head.lower():
        line.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        return
    host, _, port = head.split()[1].decode().partition(":")
    upstream = socket.create_connection((host, int(port)))
    line.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    pump(gate, line, upstream)


def test_a_proxy_is_asked_to_connect(gate: Gate, certificate: Path, tmp_path: Path) -> None:
    with listening(tunnel) as proxy:
        environ = environ_of(
            gate, certificate, HTTPS_PROXY=f"http://u:p@127.0.0.1:{proxy.port}", NO_PROXY="other"
        )
        fetch(open_origin("s3://b", environ, "eu-west-1"), "", tmp_path)
        target = f"CONNECT 127.0.0.1:{gate.port} HTTP/1.".encode()
        assert proxy.heads
        assert all(head.startswith(target) for head in proxy.heads)


def test_a_proxy_that_refuses_is_told(gate: Gate, certificate: Path, tmp_path: Path) -> None:
    with listening(tunnel) as proxy:
        environ = environ_of(
            gate, certificate, HTTPS_PROXY=f"http://u:other@127.0.0.1:{proxy.port}"
        )
        with pytest.raises(
            DataError, match=r"s3://b/ cannot be listed: Failed to connect to proxy URL"
        ) as caught:
            fetch(open_origin("s3://b", environ, "eu-west-1"), "", tmp_path)
    assert "other" not in str(caught.value)

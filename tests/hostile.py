"""Requests that mean harm or are damaged, and clients that send them to a server.

What a seed makes is always the same. ``run`` returns what came back; that the server is well is for
the caller to see: the same processes, no 500, nothing unpickled, memory as before.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import pickle
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 90.0
"""How long an answer may take before it is none."""
CLIENTS = 8
SLOW_CLIENTS = 50
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
TYPES = (
    "application/json", "application/jsonlines", "application/jsons", "text/csv",
    "application/x-npy", "application/octet-stream", "image/png", "text/plain", "",
    "text/csv; charset=utf-16", "application/json; charset=\xff", "a/b/c;;;=,", "*/*",
)  # fmt: skip
ACCEPTS = ("", "*/*", "application/x-npy", "text/csv;q=0.1", "q=;,,;q=9", "application/json;q=nan")
PATHS = (
    "/invocations", "/v1/models/model:predict", "/v1/models/..%2f..%2fetc:predict",
    "/v1/models/model/versions/99999999999999999999:predict", "/v1/models/%00:predict",
    "/v1/models/model/metadata", "/models/../../etc", "//invocations", "/ping", "/\xff", "/metrics",
)  # fmt: skip
ATTRIBUTES = (
    "tfs-model-name=../../etc/passwd", "tfs-model-version=-1", "tfs-method=run",
    "tfs-signature-name=" + "x" * 5000, "tfs-model-name=,,,=;;tfs-method", "trace=1;x",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, "", "a", "\ud800", -1, 2**63, 2**64, 10**400, 1e308, [], {}, [[]], [[], [[]]],
    {"b64": "%%%"}, {"b64": 1}, {"b64": "AA"}, {"a": {"b": {}}}, [1, "a", None], [[1, 2], [3]],
)  # fmt: skip
TEXTS = (
    b"", b" ", b"[" * 100_000, b'{"instances":' * 20_000, b"[" * 500 + b"]" * 500, b'"\\ud800"',
    b'{"instances": [NaN, -Infinity, 1e999]}', b"\xff\xfe[\x00]\x00", b"\x00" * 1000,
    b'{"instances": ' + b"9" * 100_000 + b"}", b'{"instances": 1, "inputs": 1, "examples": 1}',
    b'{"signature_name": {}, "inputs": 1}', b"1e" + b"9" * 5000, b"[1,]", b"{'instances': 1}",
    b'{"instances": [{"b64": "' + b"A" * 99_999 + b'"}]}',
    b'{"inputs": {"' + b"k" * 99_999 + b'": 1}}',
)  # fmt: skip
CSV = (
    b'"', b'"a', b'a"b"c,"', b"1,2\n3\n", b"\xff\xfe1\x00,\x00", b"1" * 100_000, b"," * 100_000,
    b"\n" * 100_000, b"nan,inf,-inf,1e999\n", b'"1\n2",3\r\n', b"1_0,0x1,\xd9\xa1\n",
    b"\x00,\x00\n",
)  # fmt: skip
_POST = b"POST /invocations HTTP/1.1\r\nhost: x\r\n"
BROKEN = (
    _POST + b"content-length: -1\r\n\r\n",
    _POST + b"content-length: 99999999999999999999\r\n\r\n",
    _POST + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
    _POST + b"transfer-encoding: chunked\r\n\r\nZZ\r\nabc\r\n0\r\n\r\n",
    _POST + b"transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\na",
    _POST + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
    b"GET /ping HTTP/9.9\r\n\r\n", b"GET\r\n\r\n", b"\r\n\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /ping HTTP/1.1\r\n: x\r\n\r\n",
    b"GET /ping HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"TRACE /ping HTTP/1.1\r\nhost: x\r\nexpect: 7\r\n\r\n",
)  # fmt: skip


class _Bomb:
    """What runs a command where it is unpickled."""

    def __init__(self, mark: str) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self._mark,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Valid:
    """What a model takes: bodies to begin with."""

    texts: Sequence[bytes]
    """JSON."""
    arrays: Sequence[Any]
    """For npy and CSV."""
    mark: Path
    """A folder that is made by whoever unpickles what is sent."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One request as bytes."""

    data: bytes
    is_whole: bool
    """Whether it is HTTP, so that it has to have an answer."""


class Maker:
    """Makes requests, one after another."""

    def __init__(self, valid: Valid, seed: int) -> None:
        self._valid, self._random = valid, random.Random(seed)

    def next(self) -> Sent:
        """Return the next request."""
        kind = self._random.random()
        if kind < 0.1:
            return self._broken()
        if kind < 0.5:
            return self._post(self._json(), self._mostly(TYPES[: 3 if kind < 0.45 else None]))
        if kind < 0.65:
            return self._post(self._csv(), "text/csv")
        if kind < 0.95:
            return self._post(self._npy(), "application/x-npy")
        return self._post(self._random.randbytes(self._random.randrange(3000)), self._mostly(TYPES))

    def _mostly(self, choices: Sequence[str]) -> str:
        return choices[0] if self._random.random() < 0.5 else self._random.choice(choices)

    def _damaged(self, data: bytes) -> bytes:
        """Return data with some of its bytes changed, or a piece of it left out or doubled."""
        if not data:
            return data
        found, pick = bytearray(data), self._random
        for _ in range(pick.randrange(1, 4)):
            start = pick.randrange(len(found) + 1)
            end = min(len(found), start + pick.randrange(1, 40))
            how = pick.randrange(4)
            if how == 0:
                found[start:end] = pick.randbytes(end - start)
            elif how == 1:
                del found[start:end]
            elif how == 2:
                found[start:start] = found[start:end]
            else:
                del found[start:]
        return bytes(found)

    def _json(self) -> bytes:
        pick = self._random
        how = pick.random()
        if how < 0.2:
            return pick.choice(TEXTS)
        text = pick.choice(self._valid.texts)
        if how < 0.6:
            return self._damaged(text)
        value = json.loads(text)
        key = pick.choice(["instances", "inputs", "signature_name", "examples", "context", "x"])
        value[key] = pick.choice(VALUES)
        if how > 0.8:
            value = {key: [value[key]] * pick.randrange(1, 30)}
        return json.dumps(value).encode("utf-8", "surrogatepass")

    def _csv(self) -> bytes:
        pick = self._random
        if pick.random() < 0.3:
            return pick.choice(CSV)
        file = io.BytesIO()
        array = pick.choice(self._valid.arrays)
        np.savetxt(file, array.reshape(len(array), -1), delimiter=",", fmt="%g")
        return self._damaged(file.getvalue())

    def _npy(self) -> bytes:
        pick = self._random
        how = pick.random()
        array = pick.choice(self._valid.arrays)
        file = io.BytesIO()
        if how < 0.15:
            bombs = np.array([_Bomb(str(self._valid.mark))], object)
            np.save(file, bombs, allow_pickle=True)
        elif how < 0.2:
            return pickle.dumps(_Bomb(str(self._valid.mark)))
        elif how < 0.25:
            np.savez(file, array)
        elif how < 0.6:
            return self._lying(array)
        else:
            np.save(file, array)
            return self._damaged(file.getvalue())
        return file.getvalue()

    def _lying(self, array: Any) -> bytes:
        """Return an array whose header says something else than its bytes."""
        pick = self._random
        types = ["<f4", "|O", "<f8", ">i8", "|V9", "<U999999999", "[('a','<f4')]", "|b1", "<M8[s]"]
        shapes = [
            "(-1,)", "(2**62,)", f"({10**30},)", f"({2**32}, {2**32})", "()", "(0,)", "(1e9,)",
            "(True,)", "(1,) * 999", str(array.shape), "[1]", "(__import__('os'),)", "(1,)" * 500,
        ]  # fmt: skip
        text = "{{'descr': {!r}, 'fortran_order': {}, 'shape': {}, }}".format(
            pick.choice(types), pick.choice(["False", "True", "0", "None"]), pick.choice(shapes)
        )
        header = (self._damaged(text.encode()) if pick.random() < 0.3 else text.encode()) + b"\n"
        if pick.random() < 0.1:
            header = b"{" * 60_000
        length = pick.choice([len(header), len(header), len(header), 0, 65535])
        version = pick.choice([b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\xff\xff"])
        size = struct.pack("<H" if version == b"\1\0" else "<I", length)
        return b"\x93NUMPY" + version + size + header + array.tobytes()

    def _post(self, body: bytes, kind: str) -> Sent:
        pick = self._random
        path = "/invocations" if pick.random() < 0.9 else pick.choice(PATHS)
        method = "POST" if pick.random() < 0.95 else pick.choice(["PUT", "GET", "DELETE", "PATCH"])
        headers = [("content-type", kind)] if kind else []
        # Mostly what can be met: the others are refused before the body is looked at.
        headers.append(("accept", pick.choice(ACCEPTS) if pick.random() < 0.15 else "*/*"))
        if pick.random() < 0.1:
            headers.append(("x-amzn-sagemaker-custom-attributes", pick.choice(ATTRIBUTES)))
        if pick.random() < 0.1:
            sizes = [len(body) // 2, len(body)]
            parts = [body[: sizes[0]], body[sizes[0] :]]
            body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts if p) + b"0\r\n\r\n"
            headers.append(("transfer-encoding", "chunked"))
        else:
            headers.append(("content-length", str(len(body))))
        lines = [f"{method} {path} HTTP/1.1", "host: x", *(f"{k}: {v}" for k, v in headers)]
        return Sent("\r\n".join((*lines, "\r\n")).encode("latin-1") + body, True)

    def _broken(self) -> Sent:
        pick = self._random
        if pick.random() < 0.4:
            return Sent(pick.choice(BROKEN), False)
        whole = self._post(pick.choice(self._valid.texts), "application/json").data
        if pick.random() < 0.5:
            return Sent(whole[: pick.randrange(1, len(whole))], False)
        lie = str(pick.choice([0, 1, 10**6, 2**31, 2**63])).encode()
        return Sent(_LENGTH.sub(rb"\r\ncontent-length: " + lie, whole), False)


@dataclass(slots=True)
class Outcome:
    """What came back."""

    requests: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    unanswered: list[bytes] = field(default_factory=list)
    """The first of the whole requests that had no answer with a status."""
    failures: list[tuple[bytes, bytes]] = field(default_factory=list)
    """The first of the requests with a status of 500 or more, with the answer."""
    slowest: float = 0.0
    slowest_request: bytes = b""


class _Client(threading.Thread):
    def __init__(self, port: int, maker: Maker, count: int) -> None:
        super().__init__(daemon=True)
        self._port, self._maker, self._count = port, maker, count
        self._connection: socket.socket | None = None
        self.outcome = Outcome()

    def run(self) -> None:
        for _ in range(self._count):
            self._one(self._maker.next())
        self._close()

    def _one(self, sent: Sent) -> None:
        if not sent.is_whole:
            self._close()
        began = time.monotonic()
        status, answer = self._asked(sent)
        seconds = time.monotonic() - began
        found = self.outcome
        found.requests += 1
        found.statuses[status or "closed"] += 1
        if sent.is_whole and not status and len(found.unanswered) < 5:
            found.unanswered.append(sent.data[:2000])
        if status >= "500" and len(found.failures) < 5:
            found.failures.append((sent.data[:2000], answer[:500]))
        if seconds > found.slowest:
            found.slowest, found.slowest_request = seconds, sent.data[:300]

    def _asked(self, sent: Sent) -> tuple[str, bytes]:
        is_new = self._connection is None
        answer = b""
        with contextlib.suppress(OSError):  # as it may be closed while we send
            self._open().sendall(sent.data)
            if not sent.is_whole:
                self._open().shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            answer = self._read()
        if not answer and sent.is_whole and not is_new:  # an idle connection may be closed
            self._close()
            return self._asked(sent)
        if not answer or not sent.is_whole or _CLOSE.search(answer):
            self._close()
        match = _STATUS.match(answer)
        return (match[1].decode() if match else ""), answer

    def _read(self) -> bytes:
        """Return an answer; that to HEAD alone would have no body."""
        connection, data = self._open(), b""
        while True:
            end = data.find(b"\r\n\r\n")
            length = _LENGTH.search(data, 0, end + 2) if end >= 0 else None
            if length and len(data) >= end + 4 + int(length[1]):
                return data
            part = connection.recv(65536)
            if not part:
                return data
            data += part

    def _open(self) -> socket.socket:
        if self._connection is None:
            self._connection = socket.create_connection(("127.0.0.1", self._port), SECONDS)
            # Closed by a reset: so many connections would use up the ports.
            self._connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


class SlowClients:
    """Connections that send a byte now and then, of a header or of a body, and never end."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        head = b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        long = head + b"content-length: 5000000\r\n\r\n[" + b"1," * 100_000
        found: list[socket.socket] = []
        while not self._stop.wait(0.2):
            while len(found) < SLOW_CLIENTS:
                connection = socket.create_connection(("127.0.0.1", self._port), 10)
                connection.sendall(long if len(found) % 2 else head)
                found.append(connection)
            for connection in list(found):
                try:
                    connection.sendall(b"1")
                except OSError:
                    connection.close()
                    found.remove(connection)
        for connection in found:
            connection.close()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)


def run(port: int, valid: Valid, count: int, seed: int = 0) -> Outcome:
    """Send so many requests from several clients, slow ones beside; return what came of it."""
    slow = SlowClients(port)
    clients = [
        _Client(port, Maker(valid, seed * 1000 + number), count // CLIENTS)
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    slow.stop()
    total = Outcome()
    for outcome in (client.outcome for client in clients):
        total.requests += outcome.requests
        total.statuses += outcome.statuses
        total.unanswered += outcome.unanswered
        total.failures += outcome.failures
        if outcome.slowest > total.slowest:
            total.slowest, total.slowest_request = outcome.slowest, outcome.slowest_request
    return total


def images(shape: tuple[int, ...], mark: Path) -> Valid:
    """Return what a model of images takes: ``shape`` is that of one."""
    generator = np.random.default_rng(1)
    arrays = [generator.integers(0, 255, (rows, *shape)) for rows in (1, 3)]
    texts = [
        json.dumps({key: a.tolist()}).encode() for a in arrays for key in ("instances", "inputs")
    ]
    encoded = base64.b64encode(b"text").decode()
    texts.append(json.dumps({"instances": [{"b64": encoded}]}).encode())
    return Valid(
        texts=texts,
        arrays=[*(a.astype("float32") for a in arrays), arrays[0].astype("uint8"), arrays[0]],
        mark=mark,
    )

"""A small S3 server in front of a folder: its folders are buckets, their files are objects.

Unlike rclone's it answers ranges with status 206, as S3 does, and keeps ``x-amz-meta-*``. Bodies
are compared with the SHA-256 that is signed; of a signature the access key is all that counts.

    python -m tests.store PORT FOLDER [HOST]
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape

PAGE = 1000
XML = '<?xml version="1.0" encoding="UTF-8"?>'
SPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
ACCESS_KEY = "testing-access-key"
THREAD = "store"
"""The name of the threads that serve."""


class Refusal(Exception):
    """An error of S3: its status and its code."""


@dataclass
class Store:
    """What is kept beside the files."""

    folder: Path
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    uploads: dict[str, tuple[str, dict[str, str], dict[int, bytes]]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def path(self, bucket: str, key: str) -> str:
        """Return the file of an object."""
        if not bucket or not os.path.isdir(self.folder / bucket):
            raise Refusal(404, "NoSuchBucket")
        return f"{self.folder}/{bucket}/{key}"

    def write(self, bucket: str, key: str, body: bytes, metadata: dict[str, str]) -> str:
        """Write an object; return its tag."""
        path = self.path(bucket, key)
        part = f"{self.folder.parent}/.writing-{next(self.numbers)}"
        with open(part, "wb") as file:
            file.write(body)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.rename(part, path)
        self.metadata[f"{bucket}/{key}"] = metadata
        return tag_of(os.stat(path))

    def keys(self, bucket: str) -> list[str]:
        """Return all keys of a bucket, in their order."""
        top = self.path(bucket, "")
        found = []
        for at, _, names in os.walk(top):
            found += [os.path.relpath(f"{at}/{name}", top) for name in names]
        return sorted(found, key=os.fsencode)


def tag_of(status: os.stat_result) -> str:
    """Return the tag of an object, which is no MD5."""
    text = f"{status.st_ino} {status.st_mtime_ns} {status.st_size}"
    return f'"{hashlib.md5(text.encode()).hexdigest()}-1"'


def dechunked(body: bytes) -> bytes:
    """Return what is in a body whose content is encoded as ``aws-chunked``."""
    found, rest = bytearray(), body
    while True:
        size, _, rest = rest.partition(b"\r\n")
        count = int(size.partition(b";")[0], 16)
        if not count:
            return bytes(found)
        found += rest[:count]
        rest = rest[count + 2 :]


class Connection:
    """One connection of a client."""

    def __init__(self, store: Store, line: socket.socket) -> None:
        self.store, self.line, self.data = store, line, b""
        self.headers: dict[str, str] = {}
        self.method = ""

    def serve(self) -> None:
        """Answer one request after the other."""
        line = self.line
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError), line:
            while True:
                while b"\r\n\r\n" not in self.data:
                    more = line.recv(1 << 16)
                    if not more:
                        return
                    self.data += more
                head, _, self.data = self.data.partition(b"\r\n\r\n")
                first, *rest = head.decode("latin-1").split("\r\n")
                self.method, target, _ = first.split(" ")
                self.headers = {
                    n.lower(): v.strip() for n, _, v in (x.partition(":") for x in rest)
                }
                body = self.body()
                path, _, query = target.partition("?")
                bucket, _, key = unquote(path[1:]).partition("/")
                try:
                    self.check(body)
                    self.answer(bucket, key, dict(parse_qsl(query, keep_blank_values=True)), body)
                except Refusal as error:
                    status, code = error.args
                    text = f"<Error><Code>{code}</Code><Message>{code} it is</Message></Error>"
                    self.reply(status, text.encode())

    def body(self) -> bytes:
        """Return the body of a request."""
        if "100-continue" in self.headers.get("expect", ""):
            self.line.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in self.headers.get("transfer-encoding", ""):
            whole = b"".join(iter(self.chunk, b""))
            return dechunked(whole) if "content-encoding" in self.headers else whole
        left = int(self.headers.get("content-length", "0"))
        whole = bytearray(left)
        whole[: len(self.data)] = self.data[:left]
        at, self.data = min(len(self.data), left), self.data[left:]
        view = memoryview(whole)
        while at < left:
            count = self.line.recv_into(view[at:])
            if not count:
                raise OSError("it is cut")
            at += count
        view.release()
        if "aws-chunked" not in self.headers.get("content-encoding", ""):
            return bytes(whole)
        return dechunked(bytes(whole))

    def chunk(self) -> bytes:
        """Return a chunk of HTTP/1.1, nothing at the end."""
        while b"\r\n" not in self.data:
            self.data += self.line.recv(1 << 16)
        size, _, self.data = self.data.partition(b"\r\n")
        count = int(size, 16) + 2
        while len(self.data) < count:
            self.data += self.line.recv(1 << 20)
        found, self.data = self.data[: count - 2], self.data[count:]
        return found

    def check(self, body: bytes) -> None:
        """Refuse who is not known, and what was damaged."""
        proof = self.headers.get("authorization", "")
        if not proof:
            raise Refusal(403, "AccessDenied")
        if f"Credential={ACCESS_KEY}/" not in proof:
            raise Refusal(403, "InvalidAccessKeyId")
        named = self.headers.get("x-amz-content-sha256", "")
        is_told = bool(body) and re.fullmatch("[0-9a-f]{64}", named)
        if is_told and hashlib.sha256(body).hexdigest() != named:
            raise Refusal(400, "XAmzContentSHA256Mismatch")

    def answer(self, bucket: str, key: str, query: dict[str, str], body: bytes) -> None:
        """Do what is asked for."""
        if self.method in ("GET", "HEAD"):
            if key:
                self.get(bucket, key)
            elif "uploads" in query:
                self.list_uploads(bucket, query)
            else:
                self.store.path(bucket, "")
                self.reply(200, self.listing(bucket, query) if self.method == "GET" else b"")
        elif self.method == "PUT" and "uploadId" in query:
            parts = self.upload(query)[2]
            parts[int(query["partNumber"])] = body
            self.reply(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')
        elif self.method == "PUT":
            self.reply(200, ETag=self.store.write(bucket, key, body, self.metadata()))
        elif self.method == "POST":
            self.post(bucket, key, query, body)
        elif "uploadId" in query:
            self.upload(query)
            del self.store.uploads[query["uploadId"]]
            self.reply(204)
        else:
            self.delete(bucket, key)
            self.reply(204)

    def metadata(self) -> dict[str, str]:
        return {n: v for n, v in self.headers.items() if n.startswith("x-amz-meta-")}

    def upload(self, query: dict[str, str]) -> tuple[str, dict[str, str], dict[int, bytes]]:
        found = self.store.uploads.get(query["uploadId"])
        if found is None:
            raise Refusal(404, "NoSuchUpload")
        return found

    def post(self, bucket: str, key: str, query: dict[str, str], body: bytes) -> None:
        """Begin or end an upload, or delete objects."""
        if "delete" in query:
            for name in re.findall(r"<Key>([^<]*)</Key>", body.decode()):
                self.delete(
                    bucket, name.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
                )
            self.reply(200, f"{XML}<DeleteResult {SPACE}></DeleteResult>".encode())
        elif "uploads" in query:
            self.store.path(bucket, key)
            name = f"upload-{next(self.store.numbers)}"
            self.store.uploads[name] = f"{bucket}/{key}", self.metadata(), {}
            told = f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><UploadId>{name}</UploadId>"
            kind = "InitiateMultipartUploadResult"
            self.reply(200, f"{XML}<{kind} {SPACE}>{told}</{kind}>".encode())
        else:
            _, metadata, parts = self.upload(query)
            whole = b"".join(parts[number] for number in sorted(parts))
            etag = self.store.write(bucket, key, whole, metadata)
            del self.store.uploads[query["uploadId"]]
            kind = "CompleteMultipartUploadResult"
            told = f"<Key>{escape(key)}</Key><ETag>{escape(etag)}</ETag>"
            self.reply(200, f"{XML}<{kind} {SPACE}>{told}</{kind}>".encode())

    def get(self, bucket: str, key: str) -> None:
        """Send an object or a range of it."""
        path = self.store.path(bucket, key)
        try:
            if os.path.isdir(path):
                raise FileNotFoundError
            file = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            raise Refusal(404, "NoSuchKey") from None
        try:
            status = os.fstat(file)
            first, size, code = 0, status.st_size, 200
            more = {"ETag": tag_of(status), "Last-Modified": "Sat, 28 Nov 2026 00:00:00 GMT"}
            more |= self.store.metadata.get(f"{bucket}/{key}", {})
            wanted = self.headers.get("if-match")
            if wanted and wanted != more["ETag"]:
                raise Refusal(412, "PreconditionFailed")
            if named := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", "")):
                first, last = int(named[1]), min(int(named[2] or size), size - 1)
                if first >= size:
                    raise Refusal(416, "InvalidRange")
                more["Content-Range"] = f"bytes {first}-{last}/{size}"
                size, code = last - first + 1, 206
            head = self.head(code, size, **more)
            if self.method == "HEAD":
                self.line.sendall(head)
            elif size < 1 << 16:
                self.line.sendall(head + os.pread(file, size, first))
            else:
                self.line.sendall(head)
                while size:
                    count = os.sendfile(self.line.fileno(), file, first, size)
                    first, size = first + count, size - count
        finally:
            os.close(file)

    def delete(self, bucket: str, key: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            os.unlink(self.store.path(bucket, key))

    def listing(self, bucket: str, query: dict[str, str]) -> bytes:
        """Return a page of ListObjectsV2."""
        prefix = query.get("prefix", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        found = [key for key in self.store.keys(bucket) if key.startswith(prefix)]
        found = [key for key in found if os.fsencode(key) > os.fsencode(after)]
        page, entries = found[:PAGE], ""
        for key in page:
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(self.store.path(bucket, key))
                entries += (
                    f"<Contents><Key>{quote(key)}</Key><ETag>{escape(tag_of(status))}</ETag>"
                    "<LastModified>2026-11-28T00:00:00.000Z</LastModified>"
                    f"<Size>{status.st_size}</Size></Contents>"
                )
        more = len(found) > len(page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            f"{XML}<ListBucketResult {SPACE}><EncodingType>url</EncodingType>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        ).encode()

    def list_uploads(self, bucket: str, query: dict[str, str]) -> None:
        entries = "".join(
            f"<Upload><Key>{escape(where.partition('/')[2])}</Key><UploadId>{name}</UploadId>"
            "<Initiated>2099-01-01T00:00:00.000Z</Initiated></Upload>"
            for name, (where, _, _) in list(self.store.uploads.items())
            if where.startswith(f"{bucket}/{query.get('prefix', '')}")
        )
        kind = "ListMultipartUploadsResult"
        self.reply(200, f"{XML}<{kind} {SPACE}>{entries}</{kind}>".encode())

    def head(self, status: int, length: int, **headers: str) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{lines}\r\n".encode()

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send an answer."""
        head = self.head(status, len(body), **headers)
        self.line.sendall(head + (b"" if self.method == "HEAD" else body))


class Listener:
    """Accepts connections, each of which has a thread, until it is closed."""

    def __init__(self, folder: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        self._store, self._lines = Store(folder), set[socket.socket]()
        self._socket = socket.create_server((host, port), backlog=512)
        self.port: int = self._socket.getsockname()[1]

    def serve(self) -> None:
        """Accept until another thread closes this."""
        while True:
            try:
                line, _ = self._socket.accept()
            except OSError:
                return
            self._lines.add(line)
            threading.Thread(target=self._work, args=(line,), name=THREAD, daemon=True).start()

    def _work(self, line: socket.socket) -> None:
        try:
            # What a client gets wrong ends its connection, and no test.
            with contextlib.suppress(Exception):
                Connection(self._store, line).serve()
        finally:
            line.close()
            self._lines.discard(line)

    def close(self) -> None:
        """End all connections."""
        for each in (self._socket, *list(self._lines)):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@contextlib.contextmanager
def serving(folder: Path, host: str = "127.0.0.1") -> Iterator[int]:
    """Serve ``folder`` from threads of this process until the block ends; yield the port."""
    listener = Listener(folder, host)
    thread = threading.Thread(target=listener.serve, name=THREAD)
    thread.start()
    try:
        yield listener.port
    finally:
        listener.close()
        thread.join()


if __name__ == "__main__":
    Listener(Path(sys.argv[2]).resolve(), *sys.argv[3:], port=int(sys.argv[1])).serve()

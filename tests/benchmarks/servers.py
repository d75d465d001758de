"""S3 servers on this machine for the benchmarks: the tests' own, rclone, moto, and a list."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.benchmarks.report import Failed
from tests.harness import eventually
from tests.s3 import ACCESS_KEY, CREDENTIALS, SECRET_KEY, free_port

BUCKET, REGION = "bench", "us-east-1"
PAGE = 1000
ENTRY = (
    "<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;{tag:032x}&quot;</ETag><Size>1</Size><StorageClass>STANDARD</StorageClass>"
    "</Contents>"
)


def environ(url: str) -> dict[str, str]:
    """Return the variables that lead a program to a server."""
    return {
        **CREDENTIALS,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
    }


def program(name: str) -> str:
    """Return the path of a program of this virtual environment, or else of the machine."""
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=f"{beside}:{os.environ['PATH']}")
    if not found:
        raise Failed(f"{name} is not installed")
    return found


def _address() -> tuple[str, int]:
    """Return where to listen: on the standard port, if we may, for awscrt knows no other."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.77", 80))
        return "127.0.0.77", 80
    except OSError:
        return "127.0.0.1", free_port()


def _url(host: str, port: int) -> str:
    return f"http://{host}" + (f":{port}" if port != 80 else "")


@contextmanager
def _served(command: Sequence[str], host: str, port: int) -> Iterator[str]:
    """Run a server until the block ends; yield its URL once it takes connections."""
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            eventually(lambda: _answers(host, port) or process.poll() is not None, command[0], 60)
            if process.poll() is not None:
                log.seek(0)
                raise Failed(f"{command[0]} ends: {log.read().decode()[-300:]}")
            yield _url(host, port)
        finally:
            process.kill()


def _answers(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


@contextmanager
def store(folder: Path) -> Iterator[str]:
    """Serve the folders in ``folder`` as buckets with the tests' own server: ranges get a 206."""
    host, port = _address()
    command = (sys.executable, "-m", "tests.store", str(port), str(folder), host)
    with _served(command, host, port) as url:
        yield url


@contextmanager
def rclone(folder: Path, *options: str) -> Iterator[str]:
    """Serve the folders in ``folder`` as buckets; what is in them must not change any more."""
    host, port = _address()
    with tempfile.TemporaryDirectory() as settings:
        places = ("--config", f"{settings}/none", "--cache-dir", f"{settings}/cache")
        keys = ("--addr", f"{host}:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}")
        command = (program("rclone"), "serve", "s3", "--vfs-cache-mode", "off")
        kept = ("--dir-cache-time", "1h")
        with _served((*command, *kept, *keys, *places, *options, str(folder)), host, port) as url:
            yield url


@contextmanager
def moto(folder: Path) -> Iterator[str]:
    """Serve a copy of the folders in ``folder`` as buckets, with moto."""
    import boto3

    host, port = _address()
    with _served((program("moto_server"), "-H", host, "-p", str(port)), host, port) as url:
        client = boto3.client(
            "s3", endpoint_url=url, region_name=REGION,
            aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY,
        )  # fmt: skip
        client.create_bucket(Bucket=BUCKET)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = str(path.relative_to(folder / BUCKET))
                client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
        yield url


@contextmanager
def listing(count: int) -> Iterator[str]:
    """Serve a bucket with so many keys that can be listed and nothing else."""
    host, port = "127.0.0.1", free_port()
    command = (sys.executable, "-m", "tests.benchmarks.servers", str(port), str(count))
    with _served(command, host, port) as url:
        yield url


def _page(start: int, count: int) -> bytes:
    end = min(count, start + PAGE)
    entries = "".join(
        ENTRY.format(key=f"train/part-{i // 1000:05d}/image-{i:09d}.jpg", tag=i)
        for i in range(start, end)
    )
    more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < count else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><Prefix>train/</Prefix><KeyCount>{end - start}</KeyCount>"
        f"<MaxKeys>{PAGE}</MaxKeys><IsTruncated>{str(end < count).lower()}</IsTruncated>"
        f"{more}{entries}</ListBucketResult>"
    ).encode()


def serve_listing(port: int, count: int) -> None:
    """Answer requests for the next page of the keys."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            body = _page(int(query.get("continuation-token", ["0"])[0]), count)
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    serve_listing(int(sys.argv[1]), int(sys.argv[2]))

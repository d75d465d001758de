"""Downloads many small objects, and one large one, with each program that can, and compares.

Each way is a command of its own, from its start to its end, with the most memory that it had. The
server is rclone on the same machine (and moto, with fewer bytes, for it is slow): the figures tell
what a program costs, not how fast a network is. Ways that are not installed are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.s3 import CREDENTIALS, free_port, serving

BUCKET, REGION = "bench", "us-east-1"


def ours(url: str, prefix: str, folder: str) -> None:
    """Download as the runtime does it."""
    from sm_runtime.storage import open_origin

    uri = f"s3://{BUCKET}/{prefix}"
    origin = open_origin(uri, dict(os.environ, S3_ENDPOINT_URL=url), REGION)
    origin.fetch((blob, os.path.join(folder, blob.key)) for blob in origin.list(uri))
    origin.close()


def _boto3(url: str, prefix: str) -> tuple[Any, list[str]]:
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3", endpoint_url=url, region_name=REGION, config=Config(max_pool_connections=32)
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return client, [entry["Key"] for page in pages for entry in page["Contents"]]


def boto3_loop(url: str, prefix: str, folder: str) -> None:
    """Download with ``download_file`` in ten threads, as the usual recipe has it."""
    client, keys = _boto3(url, prefix)
    os.makedirs(os.path.join(folder, prefix))
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda k: client.download_file(BUCKET, k, os.path.join(folder, k)), keys))


def boto3_get(url: str, prefix: str, folder: str) -> None:
    """Download with ``get_object`` in ten threads: boto3 without its transfer manager."""
    client, keys = _boto3(url, prefix)
    os.makedirs(os.path.join(folder, prefix))

    def get(key: str) -> None:
        body = client.get_object(Bucket=BUCKET, Key=key)["Body"]
        with open(os.path.join(folder, key), "wb") as file:
            for chunk in body.iter_chunks(1 << 20):
                file.write(chunk)

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(get, keys))


def awscrt(url: str, prefix: str, folder: str) -> None:
    """Download with boto3's transfer manager on AWS's C library."""
    from boto3.crt import create_crt_transfer_manager
    from boto3.s3.transfer import TransferConfig

    client, keys = _boto3(url, prefix)
    os.makedirs(os.path.join(folder, prefix))
    config = TransferConfig(preferred_transfer_client="crt")
    with create_crt_transfer_manager(client, config) as manager:
        futures = [manager.download(BUCKET, k, os.path.join(folder, k)) for k in keys]
        for future in futures:
            future.result()


def obstore(url: str, prefix: str, folder: str) -> None:
    """Download with the Rust crate object_store: no ranges, which it refuses from rclone."""
    from obstore.store import S3Store

    store = S3Store(
        BUCKET, endpoint=url, region=REGION, virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": "600s"},
    )  # fmt: skip
    os.makedirs(os.path.join(folder, prefix))

    async def all_of_them() -> None:
        slots = asyncio.Semaphore(32)

        async def get(key: str) -> None:
            async with slots:
                found = await store.get_async(key)
                with open(os.path.join(folder, key), "wb") as file:
                    async for chunk in found.stream(min_chunk_size=1 << 20):
                        file.write(chunk)

        await asyncio.gather(*(get(e["path"]) for page in store.list(prefix) for e in page))

    asyncio.run(all_of_them())


WAYS: dict[str, tuple[str, Callable[[str, str, str], None]]] = {
    "boto3, 10 threads, `download_file`": ("boto3", boto3_loop),
    "boto3, 10 threads, `get_object`": ("boto3", boto3_get),
    "boto3 on awscrt": ("awscrt", awscrt),
    "obstore": ("obstore", obstore),
    "s5cmd": ("s5cmd", lambda *_: None),
    "ours": ("boto3", ours),
}


def commands(url: str, prefix: str, folder: str) -> dict[str, list[str]]:
    """Return the command of each way that is installed."""
    found = {}
    beside = Path(sys.executable).parent
    for name, (module, _) in WAYS.items():
        if module == "s5cmd":
            program = shutil.which("s5cmd", path=f"{beside}:{os.environ['PATH']}")
            if program:
                uri = f"s3://{BUCKET}/{prefix}*"
                found[name] = [program, "--log", "error", "--endpoint-url", url, "cp", uri,
                               os.path.join(folder, prefix)]  # fmt: skip
        elif importlib.util.find_spec(module):
            found[name] = [sys.executable, "-m", "tests.benchmarks.objects", "--way", name,
                           url, prefix, folder]  # fmt: skip
    return found


def run(command: list[str], folder: str, expected: int) -> tuple[float, float]:
    """Run one way into an empty folder; return its seconds and its MiB."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    os.sync()  # nobody waits for what another one wrote
    environ = {**os.environ, **CREDENTIALS, "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION}
    peak = folder + ".peak"
    began = time.perf_counter()
    subprocess.run(
        ["/usr/bin/time", "--quiet", "--format=%M", f"--output={peak}", *command],
        env=environ, check=True,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    if size != expected:
        raise SystemExit(f"{command} brought {size} bytes instead of {expected}")
    return seconds, int(Path(peak).read_text()) / 1024


def compare(url: str, title: str, prefix: str, expected: int, folder: str, rounds: int) -> str:
    """Return the table of one shape: medians of all ways, which run in turns."""
    costs: dict[str, list[tuple[float, float]]] = {}
    refused: dict[str, str] = {}
    ways = commands(url, prefix, folder)
    for number in range(rounds + 1):  # one round to warm up
        for name, command in ways.items():
            if name in refused:
                continue
            try:
                cost = run(command, folder, expected)
            except subprocess.CalledProcessError:
                refused[name] = "fails"
                continue
            if number:
                costs.setdefault(name, []).append(cost)
    mine = statistics.median(seconds for seconds, _ in costs["ours"])
    lines = [f"| {title} | time | of ours | peak memory |", "| --- " * 4 + "|"]
    for name in ways:
        if name in refused:
            lines.append(f"| {name} | {refused[name]} | | |")
            continue
        seconds = statistics.median(cost[0] for cost in costs[name])
        memory = statistics.median(cost[1] for cost in costs[name])
        lines.append(f"| {name} | {seconds:.2f} s | {seconds / mine:.2f} x | {memory:.0f} MiB |")
    return "\n".join(lines)


def fill(folder: Path, count: int, size_bytes: int, large_bytes: int) -> None:
    """Write the objects of both shapes."""
    (folder / "small").mkdir(parents=True)
    (folder / "large").mkdir()
    for number in range(count):
        (folder / "small" / f"{number:06d}").write_bytes(os.urandom(size_bytes))
    with open(folder / "large" / "one", "wb") as file:
        for _ in range(large_bytes >> 20):
            file.write(os.urandom(1 << 20))


@contextmanager
def moto(folder: Path) -> Iterator[str]:
    """Serve a copy of ``folder`` with moto."""
    import boto3

    port = free_port()
    program = str(Path(sys.executable).parent / "moto_server")
    with subprocess.Popen(
        [program, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            client = boto3.client(
                "s3", endpoint_url=url, region_name=REGION,
                aws_access_key_id="a", aws_secret_access_key="b",
            )  # fmt: skip
            for _ in range(100):
                try:
                    client.create_bucket(Bucket=BUCKET)
                    break
                except Exception:
                    time.sleep(0.2)
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    client.put_object(
                        Bucket=BUCKET, Key=str(path.relative_to(folder)), Body=path.read_bytes()
                    )
            yield url
        finally:
            process.terminate()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ours", help="not used: this interpreter's packages are compared")
    parser.add_argument("--peer", help="not used")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--servers", default="rclone,moto", help="default: %(default)s")
    parser.add_argument("--way", nargs=4, help="run one way: name, URL, prefix, folder")
    args = parser.parse_args()
    if args.way:
        name, url, prefix, folder = args.way
        WAYS[name][1](url, prefix, folder)
        return
    with tempfile.TemporaryDirectory() as root:
        for server in args.servers.split(","):
            is_slow = server == "moto"
            if is_slow and not importlib.util.find_spec("moto"):
                continue
            count, large = (500, 64 << 20) if is_slow else (5000, 1 << 30)
            buckets, out = Path(root, server, "buckets"), str(Path(root, "out"))
            fill(buckets / BUCKET, count, 10240, large)
            served = moto(buckets / BUCKET) if is_slow else _rclone(buckets)
            with served as url:
                for title, prefix, size in (
                    (f"{server}: {count} x 10 KiB", "small/", count * 10240),
                    (f"{server}: 1 x {large >> 20} MiB", "large/", large),
                ):
                    print(f"\n{compare(url, title, prefix, size, out, args.rounds)}", flush=True)


@contextmanager
def _rclone(folder: Path) -> Iterator[str]:
    with serving(folder, is_fixed=True) as server:
        yield server.url


if __name__ == "__main__":
    main()

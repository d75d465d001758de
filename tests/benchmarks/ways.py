"""Ways to download what is below a prefix, and to list it: each is a command of its own.

Whoever runs one pays for its imports, so there are none here at the top.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

BUCKET, REGION = "bench", "us-east-1"


def ours(url: str, prefix: str, folder: str) -> None:
    """Download as the runtime does it."""
    from sm_runtime.storage import open_origin

    uri = f"s3://{BUCKET}/{prefix}"
    origin = open_origin(uri, os.environ, REGION)
    origin.fetch((blob, os.path.join(folder, blob.key)) for blob in origin.list(uri))
    origin.close()


def ours_list(url: str, prefix: str, folder: str) -> None:
    """List as a File channel does it."""
    from sm_runtime.channels.objects import Origins
    from sm_runtime.channels.survey import survey
    from sm_runtime.job.model import Channel, Cluster, Source

    source = Source(uri=f"s3://{BUCKET}/{prefix}")
    channel = Channel(name="train", path=folder, source=source)
    cluster = Cluster(current_host="algo-1", hosts=("algo-1",))
    with Origins(os.environ, REGION) as origins:
        print(survey(channel, cluster, origins, lambda: False).files)


def _boto3(url: str, prefix: str) -> tuple[Any, list[str]]:
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3", endpoint_url=url, region_name=REGION, config=Config(max_pool_connections=32)
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    return client, [entry["Key"] for page in pages for entry in page["Contents"]]


def boto3_list(url: str, prefix: str, folder: str) -> None:
    """List with the paginator into a list of keys."""
    print(len(_boto3(url, prefix)[1]))


def boto3_loop(url: str, prefix: str, folder: str) -> None:
    """Download with ``download_file`` in ten threads, as the usual recipe has it."""
    from concurrent.futures import ThreadPoolExecutor

    client, keys = _boto3(url, prefix)
    os.makedirs(os.path.join(folder, prefix))
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda k: client.download_file(BUCKET, k, os.path.join(folder, k)), keys))


def boto3_get(url: str, prefix: str, folder: str) -> None:
    """Download with ``get_object`` in ten threads: boto3 without its transfer manager."""
    from concurrent.futures import ThreadPoolExecutor

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
    """Download with AWS's C library, without boto3, which gives it host names with the bucket.

    It takes the server from the header ``Host``, whose port it does not split off.
    """
    from awscrt import auth, http, io, s3

    _, keys = _boto3(url, prefix)
    os.makedirs(os.path.join(folder, prefix))
    loops = io.EventLoopGroup()
    bootstrap = io.ClientBootstrap(loops, io.DefaultHostResolver(loops))
    provider = auth.AwsCredentialsProvider.new_static(
        os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    )
    client = s3.S3Client(
        bootstrap=bootstrap,
        region=REGION,
        signing_config=s3.create_default_s3_signing_config(
            region=REGION, credential_provider=provider
        ),
        tls_mode=s3.S3RequestTlsMode.DISABLED,
    )
    futures = []
    for key in keys:
        headers = http.HttpHeaders([("host", url.removeprefix("http://"))])
        request = http.HttpRequest("GET", f"/{BUCKET}/{key}", headers)
        made = client.make_request(
            type=s3.S3RequestType.GET_OBJECT,
            request=request,
            recv_filepath=os.path.join(folder, key),
        )
        futures.append(made.finished_future)
    for future in futures:
        future.result(120)


def _obstore(url: str) -> Any:
    from obstore.store import S3Store

    return S3Store(
        BUCKET, endpoint=url, region=REGION, virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": "600s"},
    )  # fmt: skip


def obstore_list(url: str, prefix: str, folder: str) -> None:
    """List into a list of keys."""
    print(len([entry["path"] for page in _obstore(url).list(prefix) for entry in page]))


def obstore(url: str, prefix: str, folder: str) -> None:
    """Download with the Rust crate object_store: no ranges, which it refuses from rclone."""
    import asyncio

    store = _obstore(url)
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


WAYS: dict[str, Callable[[str, str, str], None]] = {
    "boto3, 10 threads": boto3_loop,
    "boto3 `get_object`, 10 threads": boto3_get,
    "awscrt": awscrt,
    "obstore": obstore,
    "ours": ours,
}
LISTS: dict[str, Callable[[str, str, str], None]] = {
    "boto3": boto3_list,
    "obstore": obstore_list,
    "ours": ours_list,
}

if __name__ == "__main__":
    kind, name, *rest = sys.argv[1:]
    (LISTS if kind == "list" else WAYS)[name](*rest)
    if name == "obstore":
        sys.stdout.flush()
        os._exit(0)  # now and then it aborts the process when the interpreter ends

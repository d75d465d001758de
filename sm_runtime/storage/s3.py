"""Objects of S3, and of what speaks its protocol; boto3 is imported only when one is wanted."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib import import_module

from sm_runtime.errors import CodeError

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is costly to import
if TYPE_CHECKING:
    from typing import Any

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_ATTEMPTS = 3
_ENDPOINTS = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def download(uri: str, path: str, environ: Mapping[str, str], region: str, max_bytes: int) -> None:
    """Write the object ``uri`` to the file ``path``, which is there only when it is complete.

    ``environ`` may name an endpoint: ``S3_ENDPOINT_URL``, as for the SageMaker training toolkit, or
    one of boto3's own variables; without a ``region`` boto3's own rules find one. The credentials
    are those that boto3 finds. Raises CodeError, also for an object of more than ``max_bytes``.
    """
    bucket, key = parse(uri)
    try:
        boto3, errors = import_module("boto3"), import_module("botocore.exceptions")
    except ImportError as error:
        raise CodeError(_needs_boto3(uri)) from error
    part = path + ".part"
    try:
        client = _client(boto3, environ, region)
        size = _attempts(client, errors, bucket, key, part, max_bytes)
        os.rename(part, path)
    except errors.ClientError as error:
        raise CodeError(_refusal(uri, bucket, error.response)) from error
    except errors.NoCredentialsError as error:
        raise CodeError(
            f"{uri} cannot be downloaded without credentials: set AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY, or give the container a role"
        ) from error
    # botocore raises ValueError for an endpoint that is no URL.
    except (errors.BotoCoreError, OSError, ValueError) as error:
        raise CodeError(f"{uri} cannot be downloaded: {' '.join(str(error).split())}") from error
    log.info("downloaded %s (%d bytes)", uri, size)


def problems(uri: str) -> list[str]:
    """Return what can be said against ``uri`` without a request."""
    from importlib.util import find_spec

    try:
        parse(uri)
    except CodeError as error:
        return [str(error)]
    return [] if find_spec("boto3") else [_needs_boto3(uri)]


def parse(uri: str) -> tuple[str, str]:
    """Return the bucket and the key of an ``s3://`` URI, or raise CodeError.

    A key is taken literally: in S3, '%' and '?' are characters like any other.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if "@" in bucket:
        # Not shown: before the '@' there may be a secret.
        raise CodeError("an s3:// URI holds no credentials: write s3://bucket/key")
    if not bucket or "\0" in key or key.rpartition("/")[2] in ("", ".", ".."):
        raise CodeError(f"{uri!r} names no object: write s3://bucket/key")
    return bucket, key


def _client(boto3: Any, environ: Mapping[str, str], region: str) -> Any:
    """Return a client that answers within minutes whatever the network does."""
    config = import_module("botocore.config").Config
    endpoint = next((environ[name] for name in _ENDPOINTS if environ.get(name)), None)
    # An explicit mode would win over AWS_RETRY_MODE.
    retries = {} if environ.get("AWS_RETRY_MODE") else {"retries": {"mode": "standard"}}
    # With an endpoint boto3 puts the bucket into the path by itself, unless its settings say else.
    settings = config(connect_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS, **retries)
    session = boto3.session.Session(region_name=region or None)
    found = session.region_name or ("us-east-1" if endpoint else None)
    return session.client("s3", region_name=found, endpoint_url=endpoint, config=settings)


def _attempts(client: Any, errors: Any, bucket: str, key: str, part: str, max_bytes: int) -> int:
    """Download once more where the connection breaks inside the object: botocore does not."""
    for left in reversed(range(_ATTEMPTS)):
        # Not download_file: it starts threads, and this process has yet to fork.
        answer = client.get_object(Bucket=bucket, Key=key)
        size = int(answer["ContentLength"])
        if size > max_bytes:
            raise CodeError(
                f"s3://{bucket}/{key} has {size} bytes, more than the {max_bytes} bytes that"
                " SM_RUNTIME_CODE_MAX_BYTES allows"
            )
        try:
            with open(part, "wb") as file:
                for chunk in answer["Body"].iter_chunks(_CHUNK_BYTES):
                    file.write(chunk)
            return size
        except errors.BotoCoreError as error:
            if not left:
                raise
            log.warning("s3://%s/%s: %s; once more", bucket, key, error)
        finally:
            answer["Body"].close()
    raise AssertionError("the last attempt returns or raises")


def _refusal(uri: str, bucket: str, answer: Mapping[str, Any]) -> str:
    """Return why the server refused, as a sentence."""
    error = answer.get("Error", {})
    code, message = str(error.get("Code")), " ".join(str(error.get("Message")).split())
    if code == "NoSuchBucket":
        return f"{uri} cannot be downloaded: there is no bucket {bucket}"
    if code in ("NoSuchKey", "404"):
        return f"{uri} does not exist"
    if code in ("AccessDenied", "403"):
        return (
            f"{uri} cannot be downloaded: access is denied ({message}); s3:GetObject is needed, and"
            " without s3:ListBucket an object that is missing is denied too"
        )
    return f"{uri} cannot be downloaded: {code}: {message}"


def _needs_boto3(uri: str) -> str:
    return f"{uri} needs boto3, which is not installed: pip install sm-runtime[s3]"

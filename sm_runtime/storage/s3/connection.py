"""How buckets are reached: who we are, and where they are, as boto3 finds it; obstore uses that.

botocore has the rules for credentials, regions, endpoints and addresses; obstore gets the results:
the address that boto3 would send its request to, and credentials that are asked for again before
they are a minute old. Nothing is sent, and neither library loaded, before the first request.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from sm_runtime.job import location
from sm_runtime.job.errors import DataError
from sm_runtime.storage.s3.failures import (
    CA_AS_SERVER,
    ELSEWHERE,
    EXPIRED,
    Cause,
    cause_of,
    missing,
    refusal,
)
from sm_runtime.storage.threads import Calls, Stopped

if TYPE_CHECKING:
    from obstore.store import S3Store

log = logging.getLogger(__name__)

ATTEMPTS = 8
"""How often obstore tries one request; ``AWS_MAX_ATTEMPTS``."""
_CONTROL_ATTEMPTS = 5
_RETRY_SECONDS = 300
_CONNECT_SECONDS = 10
_CREDENTIAL_SECONDS = 360
"""obstore asks for new credentials 5 minutes before they end: so it does once a minute."""
_PROBE = "sm-runtime-address"
PAGE = "x-page"
"""Under which the answer of botocore holds the document of a listing."""
_SCOPE = re.compile(r"Credential=[^,]*/\d{8}/([^/,]+)/")
_ODD = re.compile(r"^/|/$|//|(^|/)\.{1,2}(/|$)|[\x00-\x1f\x7f]")
_PUBLIC = ("NoSuchKey", "NoSuchBucket", "PreconditionFailed", "InvalidRange", "SlowDown")
_T = TypeVar("_T")

_warned: set[str] = set()
"""Endpoints without TLS that were warned of."""


@dataclass(kw_only=True)
class Bucket:
    """One bucket: boto3's client for its region, and obstore's store with the same address."""

    name: str
    client: Any
    url: str
    region: str
    store: S3Store
    by_boto3: bool = False
    """Whether obstore cannot be used for any of its objects."""
    is_absent: bool = False
    """Whether the server says that there is no such bucket."""
    keys: Any = field(default=None, repr=False)

    def names(self, key: str) -> bool:
        """Return whether obstore can name ``key``: its paths have no empty or dotted parts."""
        return not self.by_boto3 and not _ODD.search(key)


class Connection:
    """The buckets of one endpoint; used by any thread. Raises DataError."""

    def __init__(
        self, uri: str, environ: Mapping[str, str], region: str, *, stall_seconds: float = 30,
        kms_key: str | None = None,
    ) -> None:  # fmt: skip
        if why := missing(uri):
            raise DataError(why)
        self._environ, self._region = environ, region
        self.stall_seconds = stall_seconds
        self._endpoint = location.endpoint(environ)
        self._kms_key = kms_key
        named = environ.get("AWS_MAX_ATTEMPTS", "")
        self._attempts = max(int(named), 1) if named.isdecimal() else 0
        self._lock = threading.RLock()
        self._session_: Any = None
        self._credentials: Any = None
        self._buckets: dict[str, Bucket] = {}
        self._calls = Calls()

    def call(self, work: Callable[[], _T], stopped: Callable[[], bool] = bool) -> _T:
        """Do ``work``, which may block, on another thread; raise Stopped when that is asked for."""
        return self._calls(work, stopped)

    def ask(self, bucket: str, uri: str, verb: str, work: Callable[[Bucket], _T]) -> _T:
        """Return what ``work`` finds with the bucket; DataError with a sentence where it fails.

        It is done once more where the credentials have expired and others are found, or where the
        bucket is elsewhere. Not for the main thread: see ``call``.
        """
        found: Bucket | None = None
        try:
            found = self.bucket(bucket)
            return work(found)
        except (DataError, Stopped):
            raise
        except Exception as error:
            cause = cause_of(error)
            if found is None or not self.mends(found, cause):
                raise self.refusal(uri, verb, cause, found) from error
        with self.errors(uri, verb, found):
            return work(self.bucket(bucket))

    @contextmanager
    def errors(self, uri: str, verb: str, bucket: Bucket | None = None) -> Iterator[None]:
        """Turn what the libraries raise into a sentence about ``uri``."""
        try:
            yield
        except (DataError, Stopped):
            raise
        except Exception as error:
            raise self.refusal(uri, verb, cause_of(error), bucket) from error

    def refusal(self, uri: str, verb: str, cause: Cause, bucket: Bucket | None = None) -> DataError:
        """Return the error about an object, with what is missing."""
        is_public = bucket is not None and bucket.keys is None
        if is_public and cause.code and cause.code not in _PUBLIC:
            cause = Cause("NoCredentials")
        if bucket is not None and bucket.is_absent and cause.is_absent:
            cause = Cause("NoSuchBucket")  # which the answer to HEAD does not tell
        return refusal(uri, verb, cause, self.stall_seconds)

    def bucket(self, name: str) -> Bucket:
        """Return how to reach a bucket: the first time, it is asked for its region."""
        found = self._buckets.get(name)
        if found is None:
            with self._lock:
                found = self._buckets.get(name)
                if found is None:
                    found = self._buckets[name] = self._open(name)
        return found

    def close(self) -> None:
        """End the threads."""
        self._calls.close()

    def extras(self, *, reads: bool = False, writes: bool = False) -> dict[str, Any]:
        """Return what boto3's requests have to say beside the key, as obstore's do."""
        found: dict[str, Any] = {}
        if _is_set(self._environ.get("AWS_REQUEST_PAYER", "")):
            found["RequestPayer"] = "requester"
        if (key := self._environ.get("AWS_SSE_CUSTOMER_KEY_BASE64")) and (writes or reads):
            from base64 import b64decode

            found |= {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": b64decode(key)}
        elif self._kms_key and writes:
            found |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self._kms_key}
        return found

    def mends(self, bucket: Bucket, cause: Cause) -> bool:
        """Return whether the bucket is reached in another way now, so that it may go better."""
        with self._lock:
            if self._buckets.get(bucket.name) is not bucket:
                return True  # another thread was faster
            if cause.code in EXPIRED or (cause.code == "AccessDenied" and not cause.message):
                self._session_ = None
                if _frozen(self._found_credentials()) == bucket.keys:
                    return False
            elif cause.code not in ELSEWHERE:
                return False
            self._buckets.clear()
            try:
                now = self.bucket(bucket.name)
            except Exception:
                return False  # the first error says more
            return (now.region, now.keys) != (bucket.region, bucket.keys)

    def _open(self, name: str) -> Bucket:
        if name.endswith("--x-s3"):
            raise DataError(
                f"s3://{name}: S3 Express directory buckets are not supported: use a general"
                " purpose bucket"
            )
        region = self._region or self._session().get_config_variable("region")
        client = self._client(region)
        told, is_absent = _region_of(client, name)
        if told and told != client.meta.region_name:
            client = self._client(told)
        url, region = _address(client, name)
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            _warn_of_plain_http(f"http://{parts.netloc.rpartition('@')[2]}")
        store = self._store(name, url, region)
        return Bucket(
            name=name, client=client, url=url, region=region, store=store,
            by_boto3=parts.scheme == "https" and self._bundle() is not None and _refuses_ca(store),
            is_absent=is_absent, keys=_frozen(self._found_credentials()),
        )  # fmt: skip

    def _client(self, region: str | None) -> Any:
        """Return boto3's client; one that does not sign where there are no credentials."""
        from botocore import UNSIGNED
        from botocore.config import Config

        url = self._endpoint or "https://s3.amazonaws.com"
        more = {} if self._found_credentials() else {"signature_version": UNSIGNED}
        client = self._session().create_client(
            "s3",
            region_name=region or ("us-east-1" if self._endpoint else None),
            endpoint_url=self._endpoint,
            verify=self._environ.get("AWS_CA_BUNDLE") or None,
            config=Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=self.stall_seconds,
                retries={
                    "total_max_attempts": self._attempts or _CONTROL_ATTEMPTS,
                    "mode": "standard",
                },
                max_pool_connections=32,
                proxies=proxies(self._environ, url),
                **more,
            ),
        )
        client.meta.events.register("before-send.s3.HeadObject", _caught)
        client.meta.events.register("before-send.s3.ListObjectsV2", partial(_unparsed, client))
        return client

    def _store(self, name: str, url: str, region: str) -> S3Store:
        from datetime import timedelta

        from obstore.store import S3Store

        how: dict[str, Any] = {"skip_signature": True}
        if credentials := self._found_credentials():
            how = {"skip_signature": False, "credential_provider": _provider(credentials)}
        return S3Store(
            name,
            # obstore reads the environment itself: what is said here counts more.
            endpoint=url,
            aws_endpoint_url_s3=url,
            virtual_hosted_style_request=True,
            region=region,
            s3_express=False,
            client_options=self._client_options(url),
            retry_config={
                "max_retries": (self._attempts or ATTEMPTS) - 1,
                "retry_timeout": timedelta(seconds=_RETRY_SECONDS),
                "backoff": {
                    "init_backoff": timedelta(seconds=0.1),
                    "max_backoff": timedelta(seconds=10),
                    "base": 2,
                },
            },
            **self._encryption(),
            **how,
        )

    def _client_options(self, url: str) -> Any:
        from datetime import timedelta
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        options: dict[str, Any] = {
            "allow_http": parts.scheme == "http",
            "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=self.stall_seconds),
            "timeout": timedelta(days=7),  # of a whole request: 30 s if nothing is said
            "pool_idle_timeout": timedelta(seconds=8),  # S3 closes what is idle for 20 s
            "user_agent": "sm-runtime",
        }
        named = proxies(self._environ, url).get(parts.scheme)
        if named:
            options["proxy_url"] = named
        elif any(name.lower().endswith("_proxy") for name in self._environ):
            # Without this obstore would look for a proxy itself, and by other rules.
            options |= {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": parts.hostname}
        if parts.scheme == "https":
            from botocore.httpsession import get_cert_path

            with open(self._bundle() or get_cert_path(True), "rb") as file:
                options["root_certificate"] = file.read()
        return options

    def _bundle(self) -> str | None:
        """Return the file of the certificates to trust that is named."""
        found = self._session().get_config_variable("ca_bundle")
        return self._environ.get("AWS_CA_BUNDLE") or found or None

    def _encryption(self) -> dict[str, Any]:
        """Return what obstore calls the settings of encryption, and of who pays."""
        environ, found = self._environ, dict[str, Any]()
        if customer := environ.get("AWS_SSE_CUSTOMER_KEY_BASE64"):
            found |= {"server_side_encryption": "sse-c", "sse_customer_key_base64": customer}
        elif self._kms_key:
            found |= {"server_side_encryption": "aws:kms", "sse_kms_key_id": self._kms_key}
        if _is_set(environ.get("AWS_REQUEST_PAYER", "")):
            found["request_payer"] = True
        if bucket_key := environ.get("AWS_SSE_BUCKET_KEY_ENABLED"):
            found["sse_bucket_key_enabled"] = _is_set(bucket_key)
        return found

    def _found_credentials(self) -> Any:
        """Return botocore's credentials, which renew themselves; None where there are none."""
        self._session()
        return self._credentials

    def _session(self) -> Any:
        with self._lock:
            if self._session_ is None:
                from botocore.session import Session

                session, environ = Session(), self._environ
                access = environ.get("AWS_ACCESS_KEY_ID")
                secret = environ.get("AWS_SECRET_ACCESS_KEY")
                if access and secret:
                    token = environ.get("AWS_SESSION_TOKEN") or environ.get("AWS_SECURITY_TOKEN")
                    session.set_credentials(access, secret, token or None)
                self._credentials = session.get_credentials()
                self._session_ = session
            return self._session_


def proxies(environ: Mapping[str, str], url: str) -> dict[str, str]:
    """Return the proxy for the scheme of ``url`` as botocore takes it; none: an empty dict.

    ``NO_PROXY`` may name hosts, domains, addresses and networks.
    """
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    found = {name.lower(): value for name, value in environ.items()}
    named = found.get(f"{parts.scheme}_proxy")
    if not named or _is_excepted(parts.hostname or "", found.get("no_proxy", "")):
        return {}
    return {parts.scheme: named if "://" in named else f"http://{named}"}


def _is_excepted(host: str, names: str) -> bool:
    from ipaddress import ip_address, ip_network

    for name in (name.strip().lower() for name in names.split(",")):
        suffix = name.lstrip(".")
        if name == "*" or (suffix and (host == suffix or host.endswith("." + suffix))):
            return True
        try:
            if ip_address(host) in ip_network(name, strict=False):
                return True
        except ValueError:
            continue
    return False


def _provider(credentials: Any) -> Callable[[], Any]:
    """Return what obstore asks for credentials.

    Not ``Boto3CredentialProvider``: what it hands over counts for 30 minutes, which is longer than
    botocore promises them to be good (10 minutes).
    """
    from datetime import datetime, timedelta, timezone

    def credential() -> dict[str, Any]:
        now = credentials.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(timezone.utc) + timedelta(seconds=_CREDENTIAL_SECONDS),
        }

    return credential


def _frozen(credentials: Any) -> Any:
    return credentials.get_frozen_credentials() if credentials else None


def _region_of(client: Any, bucket: str) -> tuple[str, bool]:
    """Return the region that S3 says a bucket is in, and whether it does not exist.

    Other stores say nothing of regions.
    """
    from botocore.exceptions import ClientError

    try:
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:  # S3 tells it even those who may not look
        answer = error.response
    told = answer.get("ResponseMetadata", {})
    region = told.get("HTTPHeaders", {}).get("x-amz-bucket-region", "")
    return region, told.get("HTTPStatusCode") == 404


def _address(client: Any, bucket: str) -> tuple[str, str]:
    """Return the URL and the region of the signature of boto3's requests for a bucket.

    A presigned URL has another one in some configurations.
    """
    found = client.head_object(Bucket=bucket, Key=_PROBE)["ResponseMetadata"]["HTTPHeaders"]
    region = found["x-region"] or client.meta.region_name or "us-east-1"
    return found["x-url"], "us-east-1" if region == "aws-global" else region


def _caught(request: Any, **_: object) -> Any:
    """Answer the request for the address, which is not sent."""
    if not request.url.endswith("/" + _PROBE):
        return None
    from botocore.awsrequest import AWSResponse

    proof = request.headers.get("Authorization", "")
    proof = proof.decode() if isinstance(proof, bytes) else proof
    scope = _SCOPE.search(proof)
    headers = {
        "x-url": request.url.removesuffix("/" + _PROBE), "x-region": scope[1] if scope else "",
    }  # fmt: skip
    return AWSResponse(request.url, 200, headers, _Raw())


def _refuses_ca(store: S3Store) -> bool:
    """Return whether obstore refuses a certificate that boto3 takes: that of a CA itself.

    The TLS of obstore (rustls) wants a server to have one of its own.
    """
    import obstore

    try:
        obstore.head(store, _PROBE)
    except Exception as error:
        if cause_of(error).code != CA_AS_SERVER:
            return False
        log.warning(
            "the server's certificate is that of a CA, which obstore refuses: objects are moved by"
            " boto3, slowly; give the server a certificate of its own"
        )
        return True
    return False


def _unparsed(client: Any, request: Any, **_: object) -> Any:
    """Send a request for a page and keep the document: botocore signs and retries as ever."""
    from botocore.awsrequest import AWSResponse

    # The session that botocore would use itself, with its proxies, certificates and time-outs.
    answer = client._endpoint.http_session.send(request)
    if answer.status_code != 200:
        return answer
    empty = _Raw(b"<ListBucketResult/>")
    return AWSResponse(answer.url, 200, {PAGE: answer.content}, empty)


class _Raw:
    """The body of an answer that no server has sent, as botocore reads it."""

    def __init__(self, content: bytes = b"") -> None:
        self._content = content

    def stream(self, **_: object) -> Iterator[bytes]:
        yield self._content


def _is_set(value: str) -> bool:
    return value.lower() in ("true", "1", "requester")


def _is_loopback(host: str) -> bool:
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _warn_of_plain_http(endpoint: str) -> None:
    if endpoint not in _warned:
        _warned.add(endpoint)
        log.warning(
            "%s: without TLS, objects can be read and altered unseen on their way; use https://"
            " where the network is not your own",
            endpoint,
        )

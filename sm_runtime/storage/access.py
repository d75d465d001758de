"""Where a bucket is and who may enter: endpoint, region and credentials by boto3's rules.

botocore takes 0.35 s to load. Where the environment says all that is needed (an endpoint, keys, and
no configuration file that could say more) it is not asked; it has to be installed all the same, so
that a job does not work or fail by what its environment happens to hold.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sm_runtime.job.errors import DataError
from sm_runtime.storage.line import Place
from sm_runtime.storage.signing import Keys

log = logging.getLogger(__name__)

_ENDPOINTS = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_SESSION = {
    "profile": "AWS_PROFILE",
    "config_file": "AWS_CONFIG_FILE",
    "credentials_file": "AWS_SHARED_CREDENTIALS_FILE",
    "ca_bundle": "AWS_CA_BUNDLE",
}


_warned: set[str] = set()
"""Endpoints without TLS that were warned of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where requests for one bucket go."""

    place: Place
    host: str
    """The header ``Host``."""
    path: str
    """What comes before the key, encoded, with a ``/`` at its end."""
    region: str
    """Of the signature."""


class Access:
    """Answers for one job; used by any thread. Raises DataError."""

    def __init__(self, uri: str, environ: Mapping[str, str], region: str) -> None:
        if find_spec("boto3") is None:
            raise DataError(needs_boto3(uri))
        self._uri, self._environ = uri, environ
        self._endpoint = next((environ[name] for name in _ENDPOINTS if environ.get(name)), None)
        self._region = region
        self._lock = threading.Lock()
        self._doors: dict[str, Door] = {}
        self._regions: dict[str, str] = {}
        self._session_: Any = None
        self._credentials: Any = None
        self._is_simple = bool(self._endpoint) and not self._has_configuration()

    def door(self, bucket: str) -> Door:
        """Return where requests for ``bucket`` go."""
        found = self._doors.get(bucket)
        if found is None:
            with self._lock:
                found = self._doors[bucket] = self._door(bucket)
        return found

    def moved(self, bucket: str, region: str) -> None:
        """Take note that ``bucket`` is in ``region``."""
        with self._lock:
            if self._regions.get(bucket) != region:
                self._regions[bucket] = region
                self._doors.pop(bucket, None)

    def keys(self) -> Keys | None:
        """Return the credentials as they are now, None where there are none: all may be public."""
        if self._credentials is None:
            with self._lock:
                if self._credentials is None:
                    self._credentials = self._found_credentials() or False
        if not self._credentials:
            return None
        if isinstance(self._credentials, Keys):
            return self._credentials
        try:
            now = self._credentials.get_frozen_credentials()
        except Exception as error:  # botocore's are many: a role, a service, a command refused
            raise DataError(
                f"{self._uri} needs credentials that cannot be renewed: {_line(error)}"
            ) from error
        return Keys(access=now.access_key, secret=now.secret_key, token=now.token)

    def renew(self, refused: Keys | None) -> bool:
        """Look for newer credentials than those that were refused; return whether there are any."""
        with self._lock:
            self._session_ = None
            self._credentials = self._found_credentials() or False
        return self.keys() != refused

    def authorities(self) -> str | None:
        """Return the file of the certificates to trust, None for the system's."""
        named = self._environ.get("AWS_CA_BUNDLE")
        if named or self._is_simple:
            return named or None
        configured = self._session().get_config_variable("ca_bundle")
        if isinstance(configured, str):
            return configured
        path = import_module("botocore.httpsession").get_cert_path(True)
        return path if isinstance(path, str) else None

    def _has_configuration(self) -> bool:
        path = self._environ.get("AWS_CONFIG_FILE") or os.path.join(
            self._environ.get("HOME", "/"), ".aws", "config"
        )
        return os.path.exists(path)

    def _door(self, bucket: str) -> Door:
        from urllib.parse import quote, urlsplit

        region = self._regions.get(bucket) or self._region
        if self._is_simple and (region or self._environ.get("AWS_DEFAULT_REGION")):
            region = region or self._environ["AWS_DEFAULT_REGION"]
            url = f"{(self._endpoint or '').rstrip('/')}/{quote(bucket)}/"
        elif self._is_simple:
            region, url = "us-east-1", f"{(self._endpoint or '').rstrip('/')}/{quote(bucket)}/"
        else:
            url, region = self._resolved(bucket, region)
        try:
            parts = urlsplit(url)
            port, host = parts.port, parts.hostname or ""
        except ValueError:
            port, host, parts = None, "", urlsplit("")
        if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
            raise DataError(
                f"{self._uri} cannot be reached: Invalid endpoint: {self._endpoint or url}"
            )
        tls = parts.scheme == "https"
        if not tls and not _is_loopback(host):
            _warn_of_plain_http(f"http://{parts.netloc.rpartition('@')[2]}")
        place = Place(
            host=host,
            port=port or (443 if tls else 80),
            url=self._endpoint or f"{parts.scheme}://{parts.netloc}",
            tls=tls,
            proxy=self._proxy(parts.scheme, host) if tls else None,
        )
        netloc = parts.netloc.rpartition("@")[2]
        return Door(place=place, host=netloc, path=parts.path, region=region)

    def _resolved(self, bucket: str, region: str) -> tuple[str, str]:
        """Return the URL that boto3 would use, with the key ``k`` cut off, and its region."""
        session = self._session()
        config = import_module("botocore.config").Config(
            signature_version=import_module("botocore").UNSIGNED
        )
        answer = import_module("botocore.awsrequest").AWSResponse
        seen: list[str] = []

        def catch(request: Any, **_: object) -> Any:
            seen.append(request.url)
            return answer(request.url, 200, {}, _Nothing())

        found = region or session.get_config_variable("region")
        if not found and self._endpoint:
            found = "us-east-1"
        try:
            client = session.create_client(
                "s3", region_name=found, endpoint_url=self._endpoint, config=config
            )
            client.meta.events.register("before-send.s3.HeadObject", catch)
            client.head_object(Bucket=bucket, Key="k")
        except Exception as error:  # botocore's are many, ValueError for what is no URL among them
            raise DataError(f"{self._uri} cannot be reached: {_line(error)}") from error
        return seen[0].removesuffix("k"), client.meta.region_name

    def _proxy(self, scheme: str, host: str) -> tuple[str, int, str] | None:
        """Return the proxy that the environment names for ``host``."""
        environ = {name.lower(): value for name, value in self._environ.items()}
        url = environ.get(f"{scheme}_proxy")
        if not url:
            return None
        for name in environ.get("no_proxy", "").split(","):
            suffix = name.strip().lstrip(".").lower()
            if suffix == "*" or (suffix and (host == suffix or host.endswith("." + suffix))):
                return None
        from base64 import b64encode
        from urllib.parse import unquote, urlsplit

        parts = urlsplit(url if "://" in url else "http://" + url)
        known = ""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            known = "Basic " + b64encode(pair.encode()).decode()
        return parts.hostname or "", parts.port or 80, known

    def _found_credentials(self) -> Any:
        environ = self._environ
        access, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
        if access and secret:
            token = environ.get("AWS_SESSION_TOKEN") or environ.get("AWS_SECURITY_TOKEN")
            return Keys(access=access, secret=secret, token=token or None)
        try:
            return self._session().get_credentials()
        except Exception as error:  # botocore's are many: see above
            raise DataError(
                f"{self._uri} needs credentials that cannot be had: {_line(error)}"
            ) from error

    def _session(self) -> Any:
        if self._session_ is None:
            session = import_module("botocore.session").Session()
            for variable, name in _SESSION.items():
                if self._environ.get(name):
                    session.set_config_variable(variable, self._environ[name])
            self._session_ = session
        return self._session_


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


class _Nothing:
    """The body of an answer that was never sent, as botocore reads it."""

    def stream(self, **_: object) -> Iterator[bytes]:
        return iter(())


def needs_boto3(uri: str) -> str:
    """Return what to do where boto3 is missing: a command for a shell."""
    import shlex  # only a job that fails pays for it

    python = shlex.quote(sys.executable or "python3")
    return f"{uri} needs boto3, which is not installed: {python} -m pip install boto3"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

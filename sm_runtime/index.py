"""The package index: which one pip will ask, whether it can be reached, and a token for it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sm_runtime.errors import InstallError

REACH_SECONDS = 10.0
_CONNECT_SECONDS = 4.0
_ARN = re.compile(
    r"arn:(?P<partition>[^:]+):codeartifact:(?P<region>[^:]+):(?P<account>[^:]+)"
    r":repository/(?P<domain>[^/]+)/(?P<repository>[^/]+)"
)
_SWITCHED_BY = ("http_proxy", "https_proxy", "all_proxy")
_OPTION = re.compile(r"(?:-i|--index-url)[\s=]+(\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    """An index that asks for a token."""

    url: str
    """With the token: never for argv, a file or the log."""
    token: str


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what the user has told pip, by option (``index-url``): its files, then PIP_*."""
    import configparser

    found: dict[str, str] = {}
    for path in _files(environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # pip will say what is wrong with it
        for section in ("global", "install"):
            if parser.has_section(section):
                found |= {key.replace("_", "-"): value for key, value in parser.items(section)}
    for name, value in environ.items():
        if name.startswith("PIP_") and value:
            found[name[4:].lower().replace("_", "-")] = value
    return found


def _files(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the places of pip's configuration, those that count more later (pip's user guide)."""
    import sys

    own = environ.get("PIP_CONFIG_FILE")
    if own == os.devnull:
        return
    for folder in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":"):
        yield os.path.join(folder, "pip", "pip.conf")
    yield "/etc/pip.conf"
    home = environ.get("HOME")
    if home:
        yield os.path.join(home, ".pip", "pip.conf")
        config = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
        yield os.path.join(config, "pip", "pip.conf")
    yield os.path.join(sys.prefix, "pip.conf")
    if own:
        yield own


def is_off(texts: Iterable[str], told: Mapping[str, str]) -> bool:
    """Whether the user, in the lines of a file or in pip's settings, wants no index to be asked."""
    asked_off = told.get("no-index", "").lower() in ("1", "true", "yes", "on", "t", "y")
    return asked_off or any(re.match(r"--no-index(\s|$)", text) for text in texts)


def asked(texts: Iterable[str], told: Mapping[str, str]) -> str | None:
    """Return the host and port of the index that pip will ask; None where that cannot be told.

    ``texts`` are the lines of the requirements files, ``told`` is what ``settings`` gave. With
    links to search, a proxy or no index at all, an index out of reach may be no harm.
    """
    lines = list(texts)
    if any(line.startswith(("-f", "--find-links", "--no-index")) for line in lines):
        return None
    if {"find-links", "no-index", "proxy", "extra-index-url"} & set(told):
        return None
    if any(line.startswith("--extra-index-url") for line in lines):
        return None
    named = [match[1] for line in lines if (match := _OPTION.match(line))]
    url = named[-1] if named else told.get("index-url") or default()
    scheme, mark, rest = (url or "").partition("://")
    if scheme not in ("http", "https") or not mark:
        return None
    host = rest.partition("/")[0].rpartition("@")[2]
    has_port = re.search(r":\d+$", host) is not None
    return host if has_port else f"{host}:{443 if scheme == 'https' else 80}"


def default() -> str | None:
    """Return the URL of the index that pip asks if nobody tells it otherwise."""
    from importlib import import_module

    try:
        return str(import_module("pip._internal.models.index").PyPI.simple_url)
    except (ImportError, AttributeError):
        return None


def unreachable(address: str, environ: Mapping[str, str]) -> str | None:
    """Return why nobody answers at ``host:port``, or None if somebody does; in 10 s at most.

    pip itself tries every address of a name with its whole time limit, more than once.
    """
    import threading

    if any(environ.get(name) or environ.get(name.upper()) for name in _SWITCHED_BY):
        return None
    found: list[str | None] = []
    host, _, port = address.rpartition(":")
    thread = threading.Thread(
        target=lambda: found.append(_reach(host.strip("[]"), int(port))), daemon=True
    )
    thread.start()
    thread.join(REACH_SECONDS)
    return found[0] if found else f"no answer in {REACH_SECONDS:.0f} s"


def _reach(host: str, port: int) -> str | None:
    import socket

    why = "the name has no address"
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            try:
                with socket.socket(family, kind, protocol) as each:
                    each.settimeout(_CONNECT_SECONDS)
                    each.connect(address)
                    return None
            except OSError as error:
                why = error.strerror or str(error)
    except OSError as error:
        why = error.strerror or str(error)
    return why


def code_artifact(arn: str, environ: Mapping[str, str]) -> Private:
    """Return the index of an AWS CodeArtifact repository, with a fresh token.

    Raises InstallError where the ARN is none, boto3 is not installed, or AWS refuses.
    """
    match = _ARN.fullmatch(arn)
    if match is None:
        raise InstallError(
            f"CA_REPOSITORY_ARN: {arn!r} is not"
            " arn:<partition>:codeartifact:<region>:<account>:repository/<domain>/<repository>"
        )
    from importlib import import_module

    try:
        boto3 = import_module("boto3")
    except ImportError as error:
        raise InstallError(
            "CA_REPOSITORY_ARN is set, and boto3, which fetches its token, is not installed"
        ) from error
    owner = {"domain": match["domain"], "domainOwner": match["account"]}
    try:
        client = boto3.client(
            "codeartifact",
            region_name=match["region"],
            endpoint_url=environ.get("AWS_ENDPOINT_URL_CODEARTIFACT"),
        )
        token = client.get_authorization_token(**owner)["authorizationToken"]
        endpoint = client.get_repository_endpoint(
            **owner, repository=match["repository"], format="pypi"
        )["repositoryEndpoint"]
    except Exception as error:  # botocore makes its classes at run time
        why = " ".join(str(error).split())
        raise InstallError(f"CA_REPOSITORY_ARN: no token for {arn}: {why}") from error
    scheme, _, rest = endpoint.partition("://")
    return Private(url=f"{scheme}://aws:{token}@{rest.rstrip('/')}/simple/", token=token)

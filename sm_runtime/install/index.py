"""The package index: what pip is told about it, and a token for a private one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sm_runtime.job.errors import InstallError

_ARN = re.compile(
    r"arn:(?P<partition>[^:]+):codeartifact:(?P<region>[^:]+):(?P<account>[^:]+)"
    r":repository/(?P<domain>[^/]+)/(?P<repository>[^/]+)"
)


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

"""Requests go where boto3 would send them, signed as boto3 would; nothing is sent here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import boto3
import botocore.awsrequest
import botocore.loaders
import botocore.session
import pytest

from sm_runtime.job.errors import DataError
from sm_runtime.storage import Blob
from sm_runtime.storage.s3 import connection
from sm_runtime.storage.s3.connection import Bucket, Connection, proxies
from sm_runtime.storage.s3.transfer import Versions

LOADER = botocore.loaders.create_loader()
"""It keeps what it has read of boto3's data, which is most of what a client costs."""
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAENVIRONMENT", "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without configuration and without a role, and no bucket that can be asked."""
    for name in os.environ:
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(connection, "_region_of", lambda *_: ("", False))
    monkeypatch.setattr(botocore.session, "create_loader", lambda *_: LOADER)
    (tmp_path / ".aws").mkdir()
    return tmp_path


def bucket(
    monkeypatch: pytest.MonkeyPatch, name: str = "bucket", region: str = "", **environ: str
) -> Bucket:
    """Return how a job with these variables reaches a bucket."""
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    return Connection(f"s3://{name}/x", dict(os.environ), region).bucket(name)


def asked_by_boto3(names: tuple[str, ...], region: str) -> list[tuple[str, str, str]]:
    """Return the URL, the region and the access key of requests of boto3's own client."""
    seen: list[Any] = []

    def catch(request: Any, **_: object) -> Any:
        seen.append(request)
        return botocore.awsrequest.AWSResponse(request.url, 200, {}, connection._Raw())

    client = boto3.session.Session().client("s3", region_name=region or None)
    client.meta.events.register("before-send.s3.GetObject", catch)
    for name in names:
        client.get_object(Bucket=name, Key="a")
    return [_signed(request) for request in seen]


def _signed(request: Any) -> tuple[str, str, str]:
    proof = request.headers["Authorization"].decode()
    found = re.search(r"Credential=([^/]*)/\d{8}/([^/]*)/s3/", proof)
    assert found
    return request.url.removesuffix("/a"), found[2], found[1]


CONFIG = """
[default]
region = eu-central-1

[profile other]
region = ap-south-1
endpoint_url = https://minio.example.com:9000/prefix

[profile virtual]
region = eu-west-3
s3 =
    addressing_style = virtual

[profile path]
s3 =
    addressing_style = path

[profile services]
services = mine

[services mine]
s3 =
    endpoint_url = http://10.0.0.9:9000
"""
SECRETS = "[default]\naws_access_key_id = AKIADEFAULT\naws_secret_access_key = e\n\n"
SECRETS += "".join(
    f"[{name}]\naws_access_key_id = AKIA{name.upper()}\naws_secret_access_key = g\n\n"
    for name in ("other", "virtual", "path", "services")
)
TABLE: dict[str, dict[str, str]] = {
    "keys": KEYS,
    "keys and a region": {**KEYS, "AWS_DEFAULT_REGION": "us-west-2"},
    "a profile": {"AWS_PROFILE": "other"},
    "keys before a profile": {**KEYS, "AWS_PROFILE": "virtual"},
    "virtual hosts": {"AWS_PROFILE": "virtual"},
    "paths": {"AWS_PROFILE": "path"},
    "services of a profile": {"AWS_PROFILE": "services"},
    "the default profile": {},
    "FIPS": {"AWS_USE_FIPS_ENDPOINT": "true"},
    "dual-stack": {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
    "both": {"AWS_USE_FIPS_ENDPOINT": "true", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
    "an endpoint": {"AWS_ENDPOINT_URL": "http://10.0.0.1:9000"},
    "an endpoint of S3": {"AWS_ENDPOINT_URL_S3": "https://store.example.com/s3/"},
    "an ignored endpoint": {
        "AWS_ENDPOINT_URL": "http://10.0.0.1:9000", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
    },
    "us-east-1 as of old": {"AWS_DEFAULT_REGION": "us-east-1", **KEYS},
    "an unused proxy": {"HTTPS_PROXY": "http://proxy:3128"},
}  # fmt: skip
CASES = [
    (case, region)
    for case, variables in TABLE.items()
    for region in ("", "us-east-1", "eu-west-3", "cn-north-1", "us-gov-west-1")
    if not (region == "cn-north-1" and "FIPS" in "".join(variables))  # there is none
]


NAMES = ("bucket", "my.bucket", "an-alias-s3alias")


@pytest.mark.parametrize(("case", "region"), CASES)
def test_the_address_and_the_identity_are_those_of_boto3(
    home: Path, monkeypatch: pytest.MonkeyPatch, case: str, region: str
) -> None:
    (home / ".aws/config").write_text(CONFIG)
    (home / ".aws/credentials").write_text(SECRETS)
    for variable, value in TABLE[case].items():
        monkeypatch.setenv(variable, value)
    made = Connection(f"s3://{NAMES[0]}/x", dict(os.environ), region)
    ours = [made.bucket(name) for name in NAMES]
    theirs = asked_by_boto3(NAMES, region)
    for found, (url, signed, key) in zip(ours, theirs, strict=True):
        assert found.keys is not None
        expected = (url, "us-east-1" if signed == "aws-global" else signed, key)
        assert (found.url, found.region, found.keys.access_key) == expected


def test_the_toolkits_variable_counts_before_those_of_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    found = bucket(
        monkeypatch, **KEYS,
        S3_ENDPOINT_URL="http://127.0.0.1:1",
        AWS_ENDPOINT_URL_S3="http://127.0.0.1:2",
        AWS_ENDPOINT_URL="http://127.0.0.1:3",
    )  # fmt: skip
    assert (found.url, found.region) == ("http://127.0.0.1:1/bucket", "us-east-1")


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"https_proxy": "u%40:p@proxy"}, "http://u%40:p@proxy"),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "other,.amazonaws.com"}, None),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "*"}, None),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "zonaws.com"}, "http://proxy:1"),
        ({"HTTP_PROXY": "http://proxy:1"}, None),
    ],
)
def test_a_proxy_is_asked_unless_the_host_is_excepted(
    environ: dict[str, str], proxy: str | None
) -> None:
    found = proxies(environ, "https://bucket.s3.amazonaws.com")
    assert found == ({"https": proxy} if proxy else {})


@pytest.mark.parametrize(
    ("excepted", "is_asked"),
    [("10.0.0.0/8", False), ("10.1.2.3", False), ("11.0.0.0/8,fd00::/8", True), ("10.0.0", True)],
)
def test_networks_are_excepted_from_a_proxy(excepted: str, is_asked: bool) -> None:
    environ = {"HTTP_PROXY": "http://proxy:1", "NO_PROXY": excepted}
    assert bool(proxies(environ, "http://10.1.2.3:9000")) == is_asked


def test_a_bucket_that_is_elsewhere_is_asked_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_region_of", lambda *_: ("ap-south-1", False))
    found = bucket(monkeypatch, region="eu-west-1", **KEYS)
    assert (found.url, found.region) == (
        "https://bucket.s3.ap-south-1.amazonaws.com",
        "ap-south-1",
    )


def test_without_credentials_nothing_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = bucket(monkeypatch, region="eu-west-1")
    assert found.keys is None
    assert found.store.config["skip_signature"]


def test_a_profile_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "absent")
    made = Connection("s3://b/x", dict(os.environ), "")
    with pytest.raises(DataError, match=r"s3://b/x cannot be listed: .*\(absent\) could not be"):
        made.ask("b", "s3://b/x", "listed", lambda found: found)


def test_a_directory_bucket_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="s3://data--use1-az4--x-s3: S3 Express directory buckets"):
        bucket(monkeypatch, "data--use1-az4--x-s3", **KEYS)


@pytest.mark.parametrize("environ", [{"AWS_S3_EXPRESS": "true"}, {"AWS_ENDPOINT": "http://x:1"}])
def test_what_only_obstore_would_read_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    found = bucket(monkeypatch, region="eu-west-1", **KEYS, **environ)
    assert found.store.config["endpoint_url_s3"] == found.url
    assert found.store.config["s3_express"] in (False, "false")


@pytest.mark.parametrize(
    ("endpoint", "is_told"),
    [
        ("http://minio:9000", True),
        ("http://10.0.0.7:9000", True),
        ("http://[2001:db8::1]:9000", True),
        ("http://127.0.0.1:9000", False),
        ("http://127.1.2.3:9000", False),
        ("http://[::1]:9000", False),
        ("http://localhost:9000", False),
        ("https://minio:9000", False),
    ],
)
def test_plain_http_beyond_this_machine_is_warned_of_once(
    endpoint: str, is_told: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_warned", set())
    for name in ("one", "two"):
        bucket(monkeypatch, name, "us-east-1", **KEYS, S3_ENDPOINT_URL=endpoint)
    told = [text for text in caplog.messages if "without TLS" in text]
    assert len(told) == is_told
    assert all(text.startswith(f"{endpoint}: ") for text in told)


def test_answers_of_two_versions_of_an_object_are_not_mixed() -> None:
    """Requests side by side are all under way before the first answer tells the version."""
    versions = Versions()
    blob = Blob(uri="s3://b/k", key="k", size_bytes=9)
    assert versions.of(blob) is None
    for etag in ('"one"', None, '"one"'):
        versions.learn(blob, etag)
    with pytest.raises(
        DataError, match=r"^s3://b/k cannot be downloaded: it has changed meanwhile"
    ):
        versions.learn(blob, '"two"')
    assert versions.of(blob) == '"one"'

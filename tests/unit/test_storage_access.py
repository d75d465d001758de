"""Requests go where boto3 would send them; nothing is sent here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sm_runtime.job.errors import DataError
from sm_runtime.storage import access
from sm_runtime.storage.access import Access, Door
from sm_runtime.storage.signing import Keys

KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without configuration and without a role."""
    for name in os.environ:
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


def door(bucket: str, region: str = "", **environ: str) -> Door:
    environ = {**KEYS, "HOME": os.environ["HOME"], **environ}
    return Access(f"s3://{bucket}/x", environ, region).door(bucket)


AWS = {
    "": ("bucket.s3.amazonaws.com", "us-east-1"),
    "eu-west-1": ("bucket.s3.eu-west-1.amazonaws.com", "eu-west-1"),
    "cn-north-1": ("bucket.s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
}


@pytest.mark.parametrize("region", AWS)
def test_without_an_endpoint_a_bucket_has_a_host_of_its_own(region: str) -> None:
    host, signed = AWS[region]
    found = door("bucket", region)
    assert (found.host, found.path, found.region) == (host, "/", signed)
    assert (found.place.host, found.place.port, found.place.tls) == (host, 443, True)


def test_a_bucket_whose_name_is_no_host_is_in_the_path() -> None:
    found = door("my.bucket", "eu-west-1")
    assert (found.host, found.path) == ("s3.eu-west-1.amazonaws.com", "/my.bucket/")


def test_the_region_of_a_configuration_file_counts_where_the_job_has_none(home: Path) -> None:
    (home / ".aws").mkdir()
    (home / ".aws/config").write_text("[default]\nregion = eu-central-1\n")
    assert door("bucket").region == "eu-central-1"
    assert door("bucket", "eu-west-1").region == "eu-west-1"


@pytest.mark.parametrize("is_configured", [False, True])
def test_an_endpoint_keeps_its_port_and_has_the_bucket_in_the_path(
    home: Path, is_configured: bool
) -> None:
    """Both ways to find that out: by ourselves, and by botocore where a file may say more."""
    if is_configured:
        (home / ".aws").mkdir()
        (home / ".aws/config").write_text("[default]\nregion = eu-central-1\n")
    found = door("bucket", "eu-west-1", AWS_ENDPOINT_URL="http://10.0.0.1:9000")
    assert (found.host, found.path, found.region) == ("10.0.0.1:9000", "/bucket/", "eu-west-1")
    assert (found.place.host, found.place.port, found.place.tls) == ("10.0.0.1", 9000, False)


def test_the_toolkits_variable_counts_before_those_of_aws() -> None:
    found = door(
        "bucket",
        S3_ENDPOINT_URL="http://one:1",
        AWS_ENDPOINT_URL_S3="http://two:2",
        AWS_ENDPOINT_URL="http://three:3",
    )
    assert found.host == "one:1"
    found = door("bucket", AWS_ENDPOINT_URL_S3="http://two:2", AWS_ENDPOINT_URL="http://three:3")
    assert found.host == "two:2"


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, ("proxy", 3128, "")),
        ({"https_proxy": "http://u%40:p@proxy"}, ("proxy", 80, "Basic dUA6cA==")),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "other,.amazonaws.com"}, None),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "*"}, None),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "zonaws.com"}, ("proxy", 1, "")),
        ({"HTTP_PROXY": "http://proxy:1"}, None),
    ],
)
def test_a_proxy_is_asked_unless_the_host_is_excepted(
    environ: dict[str, str], proxy: tuple[str, int, str] | None
) -> None:
    assert door("bucket", "eu-west-1", **environ).place.proxy == proxy


def test_a_bucket_that_is_elsewhere_has_another_door() -> None:
    access = Access("s3://bucket/x", {**KEYS, "HOME": os.environ["HOME"]}, "eu-west-1")
    assert access.door("bucket").region == "eu-west-1"
    access.moved("bucket", "ap-south-1")
    assert access.door("bucket").host == "bucket.s3.ap-south-1.amazonaws.com"


CREDENTIALS = "[default]\naws_access_key_id = d\naws_secret_access_key = e\n\n[other]\n"
CREDENTIALS += "aws_access_key_id = f\naws_secret_access_key = g\naws_session_token = h\n"


@pytest.mark.parametrize(
    ("environ", "keys"),
    [
        (KEYS, Keys(access="a", secret="b")),
        ({**KEYS, "AWS_SESSION_TOKEN": "c"}, Keys(access="a", secret="b", token="c")),
        ({}, Keys(access="d", secret="e")),
        ({"AWS_PROFILE": "other"}, Keys(access="f", secret="g", token="h")),
        ({"AWS_SHARED_CREDENTIALS_FILE": "/nonexistent"}, None),
    ],
)
def test_credentials_are_found_where_boto3_finds_them(
    home: Path, environ: dict[str, str], keys: Keys | None
) -> None:
    (home / ".aws").mkdir()
    (home / ".aws/credentials").write_text(CREDENTIALS)
    assert Access("s3://b/x", {"HOME": str(home), **environ}, "eu-west-1").keys() == keys


def test_a_profile_that_is_not_there_is_named(home: Path) -> None:
    with pytest.raises(DataError, match=r"s3://b/x needs credentials .*\(absent\) could not be"):
        Access("s3://b/x", {"HOME": str(home), "AWS_PROFILE": "absent"}, "").keys()


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
    monkeypatch.setattr(access, "_warned", set())
    for bucket in ("one", "two"):
        door(bucket, "us-east-1", S3_ENDPOINT_URL=endpoint)
    told = [text for text in caplog.messages if "without TLS" in text]
    assert len(told) == is_told
    assert all(text.startswith(f"{endpoint}: ") for text in told)

"""Signatures are those that AWS publishes, and those that botocore makes."""

from __future__ import annotations

import datetime
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import example, given
from hypothesis import strategies as st

from sm_runtime.storage.signing import (
    Form,
    Keys,
    encoded_path,
    encoded_query,
    stamp,
)

EXAMPLE = Keys(access="AKIAIOSFODNN7EXAMPLE", secret="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ALWAYS = {"host": "examplebucket.s3.amazonaws.com", "x-amz-date": "20130524T000000Z"}

# https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
PUBLISHED = {
    "get an object": (
        "GET", "test.txt", (), {"range": "bytes=0-9", "x-amz-content-sha256": EMPTY},
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    "put an object": (
        "PUT", "test$file.text", (), {
            "date": "Fri, 24 May 2013 00:00:00 GMT",
            "x-amz-storage-class": "REDUCED_REDUNDANCY",
            "x-amz-content-sha256":
                "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
        },
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    "get a bucket's life cycle": (
        "GET", "", (("lifecycle", ""),), {"x-amz-content-sha256": EMPTY},
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    ),
    "list objects": (
        "GET", "", (("prefix", "J"), ("max-keys", "2")), {"x-amz-content-sha256": EMPTY},
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PUBLISHED)
def test_a_signature_is_the_published_one(case: str) -> None:
    method, path, query, headers, signature = PUBLISHED[case]
    signed = tuple({**ALWAYS, **headers}.items())
    form = Form(EXAMPLE.access, EXAMPLE.secret, "us-east-1", signed)
    found = form.authorization(method, "/" + encoded_path(path), encoded_query(query))
    names = ";".join(sorted({*ALWAYS, *headers}))
    assert found == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        f"SignedHeaders={names},Signature={signature}"
    )


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=10)
PATHS = st.lists(TEXT.filter(lambda part: part not in (".", "..")), min_size=1, max_size=4)


@given(
    method=st.sampled_from(["GET", "PUT", "POST", "HEAD", "DELETE"]),
    parts=PATHS,
    query=st.dictionaries(NAMES, TEXT | st.just(""), max_size=4),
    extra=st.dictionaries(NAMES.map("x-amz-meta-{}".format), NAMES, max_size=3),
    secret=TEXT,
    token=st.none() | NAMES,
    region=st.sampled_from(["us-east-1", "eu-central-1", "cn-north-1"]),
)
@example("GET", ["a b", "ü+%2F&=~"], {"prefix": "x y/+", "uploads": ""}, {}, "s", "t", "r")
@example("GET", ["a"], {"a-b": "1", "a": "2"}, {}, "s", None, "r")
def test_a_signature_is_botocores(
    method: str,
    parts: list[str],
    query: dict[str, str],
    extra: dict[str, str],
    secret: str,
    token: str | None,
    region: str,
) -> None:
    path = "/" + encoded_path("/".join(parts))
    assert path == "/" + quote("/".join(parts), safe="/-_.~")
    asked = AWSRequest(
        method, f"https://bucket.example.com{path}?{encoded_query(query.items())}", headers=extra
    )
    S3SigV4Auth(Credentials("access", secret, token), "s3", region).add_auth(asked)
    headers = {"host": "bucket.example.com", **extra}
    for name in ("x-amz-date", "x-amz-content-sha256"):
        headers[name] = asked.headers[name]
    if token:
        headers["x-amz-security-token"] = token
    form = Form("access", secret, region, tuple(headers.items()))
    found = form.authorization(method, path, encoded_query(query.items()))
    assert form.lines == "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    assert found == asked.headers["Authorization"].replace(", ", ",")


def test_a_time_is_spelled_in_utc() -> None:
    leap = datetime.datetime(2024, 2, 29, 23, 59, 59, 900_000, datetime.timezone.utc)
    assert stamp(leap.timestamp()) == "20240229T235959Z"

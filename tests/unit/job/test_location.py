from __future__ import annotations

import pytest

from sm_runtime.job import location
from sm_runtime.job.location import Location

PARSED = {
    "s3://bucket": Location("s3", "bucket", ""),
    "s3://bucket/": Location("s3", "bucket", ""),
    "S3://bucket/a//b/./c": Location("s3", "bucket", "a//b/./c"),
    "s3://bucket/a%20b?c#d": Location("s3", "bucket", "a%20b?c#d"),
    "file:///a/b": Location("file", "", "/a/b"),
    "file:///a/b/": Location("file", "", "/a/b/"),
    "file:/a": Location("file", "", "/a"),
    "FILE://localhost/a%20b%2Fc": Location("file", "", "/a b/c"),
    "file:///%ff": Location("file", "", "/\udcff"),
}


@pytest.mark.parametrize("uri", PARSED)
def test_a_uri_is_parsed_once_for_all(uri: str) -> None:
    assert location.parse(uri) == PARSED[uri]


REFUSED = {
    "s3://": "names no bucket",
    "s3:///key": "names no bucket",
    "s3://b/\0": "names no bucket",
    "s3://key:secret@bucket/x": "holds no credentials",
    "file://host/a": "has the host 'host'",
    "file://a": "has the host 'a'",
    "file:a": "names no absolute path",
    "file:///a\0": "names no absolute path",
    "gs://bucket/x": "is neither an s3:// nor a file:// URI",
    "/a/b": "is neither",
    "": "is neither",
}


@pytest.mark.parametrize("uri", REFUSED)
def test_what_is_wrong_with_a_uri_is_a_sentence(uri: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[uri]) as caught:
        location.parse(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["/a/b", "/a b", "/%41", "/ü", "/\udcff", "/a?b#c"])
def test_a_path_comes_back_from_its_uri(path: str) -> None:
    assert location.parse(location.file_uri(path)).path == path


@pytest.mark.parametrize(
    ("text", "scheme"),
    [("s3://b", "s3"), ("/a:b", ""), ("a", ""), ("file:/x", "file"), ("C:x", ""), ("gs://b", "gs")],
)
def test_the_scheme_of_a_text(text: str, scheme: str) -> None:
    assert location.scheme(text) == scheme
    assert (location.is_s3(text), location.is_file(text)) == (scheme == "s3", scheme == "file")

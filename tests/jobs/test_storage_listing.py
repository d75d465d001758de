"""A million objects are listed, planned and shuffled in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.httpd import Answers, answering

KEYS = 1_000_000
# As S3 writes it; the key's middle and the tag's start are put in for each page.
ENTRY = (
    "<Contents><Key>train/part-PAGE/image-{0:09d}.jpg</Key>"
    "<LastModified>2026-11-20T10:11:12.000Z</LastModified>"
    "<ETag>&quot;TAGS{0:024x}&quot;</ETag><Size>123456</Size>"
    "<StorageClass>STANDARD</StorageClass></Contents>"
)
ENTRIES = "".join(ENTRY.format(number) for number in range(1000)).encode()
HEAD = (
    "<?xml version='1.0'?><ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"
    "<Name>b</Name><KeyCount>1000</KeyCount><IsTruncated>{}</IsTruncated>"
    "<NextContinuationToken>{}</NextContinuationToken>"
)


class Million(Answers):
    """Lists a million keys, a thousand at a time."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        page = int(self.path.partition("continuation-token=")[2].partition("&")[0] or 0)
        more = str(page < KEYS // 1000 - 1).lower()
        entries = ENTRIES.replace(b"PAGE", b"%05d" % page).replace(b"TAGS", b"%08x" % page)
        self.say(HEAD.format(more, page + 1).encode() + entries + b"</ListBucketResult>")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with answering(Million) as url:
        yield url


PRELUDE = """
import sys
from sm_runtime.channels.pipe import Epochs
from sm_runtime.channels.objects import Origins
from sm_runtime.channels.survey import survey
from sm_runtime.job.model import Channel, Cluster, Source
environ = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "S3_ENDPOINT_URL": sys.argv[1]}
origins, here = Origins(environ, "x"), Cluster(current_host="a", hosts=("a",))
def channel(**more):
    return Channel(name="train", path="/x", source=Source(uri="s3://b/train/", **more))
"""
REPORT = """
with open("/proc/self/status") as file:
    print(count, *(line.split()[1] for line in file if line.startswith("VmHWM")))
"""
# Both list the bucket first.
USES = {
    "the plan of a File channel": "count = survey(channel(), here, origins, lambda: False).files",
    "a shuffled epoch": (
        "count = sum(1 for _ in Epochs(channel(shuffle_seed=1), here, origins).pieces(0))"
    ),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("use", USES)
def test_a_million_keys_take_less_than_200_mib(url: str, use: str) -> None:
    command = (sys.executable, "-c", PRELUDE + USES[use] + REPORT, url)
    done = subprocess.run(command, cwd="/", stdout=subprocess.PIPE, check=True, timeout=280)
    count, kibibytes = map(int, done.stdout.split())
    assert count == KEYS
    assert kibibytes < 200 * 1024

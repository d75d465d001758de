"""A whole job whose model and output data go to a bucket, however it ends."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.buckets import files, objects, request
from tests.faults import Request, proxying
from tests.harness import RUNTIME, Base
from tests.httpd import Answers, answering
from tests.s3 import CREDENTIALS, Server, serving

MODEL = (
    "import os, signal, sys, time\n"
    "model, data = os.environ['SM_MODEL_DIR'], os.environ['SM_OUTPUT_DATA_DIR']\n"
    "os.makedirs(model + '/1/assets')\n"
    "open(model + '/1/weights', 'w').write('w')\n"
    "open(model + '/1/assets/vocabulary', 'w').write('v')\n"
    "open(data + '/plot', 'w').write('p')\n"
)
WHOLE = {"1/weights": b"w", "1/assets/vocabulary": b"v"}
AT = "artifacts/a-job/output"


@pytest.fixture(autouse=True)
def _no_report(base: Base) -> None:
    """Have the places hold what the script has left, and nothing else; see test_report."""
    base.environ["SM_RUNTIME_REPORT"] = "0"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    with serving(tmp_path / "buckets") as server:
        yield server


def output(**more: str) -> dict[str, str]:
    return {"S3OutputPath": "s3://bucket/artifacts", **more}


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {one.name: tar.extractfile(one) for one in tar.getmembers()}
        return {name: file.read() for name, file in found.items() if file}


def test_both_archives_are_objects_when_the_job_has_ended(base: Base, server: Server) -> None:
    request(base, server.url, OutputDataConfig=output())
    result = base.script(MODEL).run()
    assert result.status == 0, result.log
    found = objects(server)
    assert sorted(found) == [f"{AT}/model.tar.gz", f"{AT}/output.tar.gz"]
    assert members(found[f"{AT}/model.tar.gz"]) == WHOLE
    assert members(found[f"{AT}/output.tar.gz"]) == {"plot": b"p"}
    assert f"model: 2 files, 2 B -> s3://bucket/{AT}/model.tar.gz" in result.log
    assert files(base.path("model")) == WHOLE


def test_uncompressed_artifacts_are_an_object_for_each_file(base: Base, server: Server) -> None:
    request(base, server.url, OutputDataConfig=output(CompressionType="NONE"))
    result = base.script(MODEL).run()
    assert result.status == 0, result.log
    wanted = {f"{AT}/model/{name}": content for name, content in WHOLE.items()}
    assert objects(server) == {**wanted, f"{AT}/data/plot": b"p"}


@pytest.fixture
def narrow(base: Base) -> Iterator[Base]:
    """A base folder on a disk of 48 MiB, which holds the temporary files as well."""
    command = ("mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", base.root)
    subprocess.run(command, check=True)
    base.path("tmp").mkdir()
    base.environ["TMPDIR"] = str(base.path("tmp"))
    yield base
    subprocess.run(("umount", base.root), check=True)


@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
def test_a_model_is_sent_where_there_is_no_room_for_a_copy(
    narrow: Base, server: Server, compression: str
) -> None:
    request(narrow, server.url, OutputDataConfig=output(CompressionType=compression))
    large = "open(model + '/large', 'wb').write(os.urandom(40 << 20))\n"
    result = narrow.script(MODEL + large).run(TMPDIR=str(narrow.path("tmp")))
    assert result.status == 0, result.log
    sent = objects(server)
    if compression == "GZIP":
        found = members(sent[f"{AT}/model.tar.gz"])["large"]
    else:
        found = sent[f"{AT}/model/large"]
    assert found == narrow.path("model/large").read_bytes()


@pytest.mark.parametrize("deaf", [False, True], ids=["ends", "is killed"])
def test_a_stopped_job_has_its_model_in_the_bucket(base: Base, server: Server, deaf: bool) -> None:
    request(base, server.url, OutputDataConfig=output())
    stop = "signal.SIG_IGN" if deaf else "lambda *_: sys.exit(0)"
    wait = f"signal.signal(signal.SIGTERM, {stop})\nprint('ready', flush=True)\n"
    loop = "while True: signal.pause()"
    running = base.script(MODEL + wait + loop).start(SM_RUNTIME_STOP_GRACE_SECONDS="0.5")
    running.ready()
    running.send(signal.SIGTERM)
    assert running.wait().status == (143 if deaf else 0)
    assert members(objects(server)[f"{AT}/model.tar.gz"]) == WHOLE


@pytest.mark.parametrize("size", [10, 20 << 20], ids=["one request", "parts"])
@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
def test_a_model_for_which_a_stop_leaves_no_time_is_told_before_the_engine_kills(
    base: Base, server: Server, compression: str, size: int
) -> None:
    """Nothing else ends this within the proxy's own 60 s."""

    def plan(asked: Request) -> str | None:
        return "mute" if asked.method == "PUT" and "/model" in asked.path else None

    with proxying(server.url, plan) as proxy:
        request(base, proxy.url, OutputDataConfig=output(CompressionType=compression))
        script = (
            f"open(model + '/weights', 'wb').write(os.urandom({size}))\n"
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
            "print('ready', flush=True)\nwhile True: signal.pause()"
        )
        running = base.script(MODEL + script).start(SM_RUNTIME_STOP_TIMEOUT_SECONDS="4")
        running.ready()
        running.send(signal.SIGTERM)
        assert running.wait(50).status == 1
        assert proxy.seen("mute")
    assert base.failure().startswith("ArtifactError: the model cannot be saved to s3://bucket/")
    assert "a stop left no time for it" in base.failure()
    assert base.path("model/weights").stat().st_size == size


@pytest.mark.parametrize("is_empty", [False, True], ids=["a model", "no model"])
@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
def test_a_role_that_may_only_write_fails_no_job(
    base: Base, server: Server, compression: str, is_empty: bool
) -> None:
    """Such a role can neither look for an object nor list any: S3 answers 403 to both."""

    def plan(asked: Request) -> str | None:
        return "denied" if asked.method in ("GET", "HEAD", "DELETE") else None

    with proxying(server.url, plan) as proxy:
        request(base, proxy.url, OutputDataConfig=output(CompressionType=compression))
        result = base.script("print('trained')" if is_empty else MODEL).run()
        assert proxy.seen("denied") or (compression == "GZIP" and not is_empty)
    assert result.status == 0, result.log
    assert bool(objects(server)) != is_empty
    mixed = "files of an earlier attempt may still be there" in result.log
    assert mixed == (compression == "NONE" and not is_empty)


@pytest.mark.parametrize("status", [0, 7])
@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
def test_a_model_that_is_refused_fails_the_job_and_stays_where_it_is(
    base: Base, server: Server, status: int, compression: str
) -> None:
    def plan(asked: Request) -> str | None:
        return "denied" if asked.method != "GET" and "/model" in asked.path else None

    with proxying(server.url, plan) as proxy:
        request(base, proxy.url, OutputDataConfig=output(CompressionType=compression))
        result = base.script(MODEL + f"sys.exit({status})").run()
        assert proxy.seen("denied")
    assert result.status == (status or 1)
    assert f"cannot be saved to s3://bucket/{AT}/model" in result.log
    assert "access is denied" in result.log
    if not status:
        assert base.failure().startswith("ArtifactError: ")
        assert f"s3://bucket/{AT}/model" in base.failure()
        assert not base.path("output/success").exists()
    assert files(base.path("model")) == WHOLE
    sent = objects(server)
    assert not [key for key in sent if "/model" in key]
    if compression == "GZIP":
        assert "plot" in members(sent[f"{AT}/output.tar.gz"])
    else:
        assert sent[f"{AT}/data/plot"] == b"p"


def test_a_store_that_is_busy_for_a_while_costs_only_time(base: Base, server: Server) -> None:
    left = ["busy"] * 3

    def plan(asked: Request) -> str | None:
        return left.pop() if asked.method == "PUT" and left else None

    with proxying(server.url, plan) as proxy:
        request(base, proxy.url, OutputDataConfig=output())
        result = base.script(MODEL).run()
        assert proxy.seen("busy") == 3
    assert result.status == 0, result.log
    assert members(objects(server)[f"{AT}/model.tar.gz"]) == WHOLE


def test_an_upload_that_stalls_is_begun_anew_as_soon_as_the_job_wants(
    base: Base, server: Server
) -> None:
    """The proxy says nothing for 60 s."""

    def plan(asked: Request) -> str | None:
        return "mute" if asked.method == "PUT" and asked.number == 1 else None

    with proxying(server.url, plan) as proxy:
        request(base, proxy.url, OutputDataConfig=output())
        result = base.script(MODEL).run(seconds=50, SM_RUNTIME_STALL_SECONDS="1")
        assert proxy.seen("mute") == 2
    assert result.status == 0, result.log
    assert members(objects(server)[f"{AT}/model.tar.gz"]) == WHOLE


def test_all_that_a_job_writes_is_encrypted_with_its_key(base: Base, server: Server) -> None:
    """The server knows no KMS: what counts is what it is asked for."""
    with proxying(server.url, lambda _: None) as proxy:
        request(
            base,
            proxy.url,
            OutputDataConfig=output(KmsKeyId="alias/mine"),
            CheckpointConfig={"S3Uri": "s3://bucket/ck", "LocalPath": str(base.path("ck"))},
        )
        script = f"open({str(base.path('ck/step'))!r}, 'w').write('1')\n"
        large = "open(model + '/large', 'wb').write(os.urandom(20 << 20))\n"
        result = base.script(MODEL + large + script).run()
        assert result.status == 0, result.log
        begun = [
            one
            for one in proxy.requests
            if (one.method == "PUT" and "uploadId" not in one.query)
            or (one.method == "POST" and "uploads" in one.query)
        ]
    assert {one.path for one in begun} == {
        f"/bucket/{AT}/model.tar.gz", f"/bucket/{AT}/output.tar.gz", "/bucket/ck/step",
    }  # fmt: skip
    for one in begun:
        assert one.headers["x-amz-server-side-encryption"] == "aws:kms"
        assert one.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/mine"


def test_a_bucket_that_is_not_there_is_named(base: Base, server: Server) -> None:
    request(base, server.url, OutputDataConfig={"S3OutputPath": "s3://absent/x"})
    result = base.script(MODEL).run()
    assert result.status == 1
    assert "there is no bucket absent" in base.failure()
    assert files(base.path("model")) == WHOLE


WRONG = {
    "output": (
        {"OutputDataConfig": {"S3OutputPath": "s3://u:p@b/x"}},
        "OutputDataConfig.S3OutputPath",
    ),
    "checkpoints": ({"CheckpointConfig": {"S3Uri": "s3://u:p@b/x"}}, "CheckpointConfig.S3Uri"),
    "checkpoints in themselves": (
        {"CheckpointConfig": {"S3Uri": "file:///ck/all", "LocalPath": "/ck"}},
        "CheckpointConfig.S3Uri",
    ),
}


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize("case", WRONG)
def test_a_place_that_cannot_be_used_is_told_by_a_check_and_before_the_script(
    base: Base, case: str, command: str
) -> None:
    request(base, "http://127.0.0.1:9", **WRONG[case][0])
    result = base.script("print('ran')").run(command, command=RUNTIME)
    assert result.status == 1
    assert WRONG[case][1] in result.out.decode() + result.log
    assert b"ran\n" not in result.out
    if command == "train":
        assert base.failure().startswith("ConfigError: ")


def test_a_check_tells_all_places_that_cannot_be_used(base: Base) -> None:
    request(base, "http://127.0.0.1:9", **WRONG["output"][0], **WRONG["checkpoints"][0])
    result = base.script("").run("check", command=RUNTIME)
    assert result.status == 1
    assert all(setting in result.out.decode() for _, setting in list(WRONG.values())[:2])
    assert "u:p" not in result.out.decode()


def test_a_check_of_s3_sends_no_request(base: Base) -> None:
    request(
        base,
        "http://127.0.0.1:9",  # where nobody listens
        OutputDataConfig=output(),
        CheckpointConfig={"S3Uri": "s3://bucket/ck"},
    )
    result = base.script("").run("check", command=RUNTIME)
    assert (result.status, result.out) == (0, b"no problem found\n"), result.log


def keys_of(base: Base, **more: str) -> dict[str, str]:
    """Take the keys out of a job's environment, and have them in a profile's terms."""
    names = {name: base.environ.pop(name) for name in CREDENTIALS}
    return {name.lower(): value for name, value in names.items()} | more


def ini(section: str, values: dict[str, str]) -> str:
    return f"[{section}]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())


def test_a_profile_says_who_and_where(base: Base, server: Server, tmp_path: Path) -> None:
    request(base, server.url, OutputDataConfig=output())
    del base.environ["AWS_DEFAULT_REGION"]
    where = {"endpoint_url": base.environ.pop("AWS_ENDPOINT_URL_S3"), "region": "eu-west-3"}
    (tmp_path / "home/.aws").mkdir(parents=True)
    (tmp_path / "home/.aws/credentials").write_text(ini("mine", keys_of(base)))
    (tmp_path / "home/.aws/config").write_text(ini("profile mine", where))
    result = base.script(MODEL).run(AWS_PROFILE="mine", HOME=str(tmp_path / "home"))
    assert result.status == 0, result.log
    assert members(objects(server)[f"{AT}/model.tar.gz"]) == WHOLE


class Instance(Answers):
    """The metadata service of an instance that has a role."""

    def do_PUT(self) -> None:
        self.say("a-token")

    def do_GET(self) -> None:
        if self.path.rpartition("/")[2] != "a-role":
            self.say("a-role")
            return
        document = {
            "Code": "Success",
            "AccessKeyId": CREDENTIALS["AWS_ACCESS_KEY_ID"],
            "SecretAccessKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            "Token": "a-session",
            "Expiration": "2099-01-01T00:00:00Z",
        }
        self.say(json.dumps(document))


def test_the_role_of_an_instance_lets_in(base: Base, server: Server) -> None:
    request(base, server.url, OutputDataConfig=output())
    keys_of(base)
    with answering(Instance) as url:
        result = base.script(MODEL).run(
            AWS_EC2_METADATA_DISABLED="false", AWS_EC2_METADATA_SERVICE_ENDPOINT=f"{url}/"
        )
    assert result.status == 0, result.log
    assert members(objects(server)[f"{AT}/model.tar.gz"]) == WHOLE

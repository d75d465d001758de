"""A whole job whose folders are in step with a bucket while its script runs, and when it stops."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.buckets import files, objects, reach, request
from tests.faults import Plan, Request, always, proxying
from tests.harness import Base, eventually
from tests.httpd import Answers, answering
from tests.s3 import CREDENTIALS, Server, serving

PATIENT = 60.0

# What the scripts below begin with: `save` writes beside and renames, `until` waits for a file.
PRELUDE = """
import json, os, signal, sys, threading
folder = os.environ.get("FOLDER", "")
def save(name, text, folder=folder):
    os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
    with open(f"{folder}/{name}.tmp", "w") as file:
        file.write(text)
    os.rename(f"{folder}/{name}.tmp", f"{folder}/{name}")
def until(path):
    while not os.path.exists(path):
        threading.Event().wait(0.02)
def checkpoint(step):
    save(f"ckpt-{step}.data", f"data {step}")
    save("checkpoint", f"ckpt-{step}")
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    with serving(tmp_path / "buckets") as server:
        yield server


@pytest.fixture
def folder(base: Base) -> Path:
    """Where the script has its checkpoints."""
    base.environ["FOLDER"] = str(base.path("ck"))
    return base.path("ck")


def checkpointing(base: Base, url: str, **parts: Any) -> None:
    place = {"S3Uri": "s3://bucket/job", "LocalPath": str(base.path("ck"))}
    request(base, url, CheckpointConfig=place, **parts)


def step(number: int) -> dict[str, bytes]:
    return {
        "job/checkpoint": b"ckpt-%d" % number,
        f"job/ckpt-{number}.data": b"data %d" % number,
    }


def arrives(server: Server, **wanted: bytes) -> None:
    eventually(lambda: objects(server).items() >= wanted.items(), f"{sorted(wanted)}", PATIENT)


def test_a_job_goes_on_with_the_checkpoints_of_the_one_before(
    base: Base, server: Server, folder: Path
) -> None:
    for key, content in step(7).items():
        server.put(f"s3://bucket/{key}", content)
    checkpointing(base, server.url)
    script = (
        "last = open(folder + '/checkpoint').read()\n"
        "print(last, open(f'{folder}/{last}.data').read(), flush=True)\n"
        "checkpoint(8)\nos.unlink(folder + '/ckpt-7.data')\n"
    )
    result = base.script(PRELUDE + script).run()
    assert (result.status, result.out) == (0, b"ckpt-7 data 7\n"), result.log
    assert "restored 2 files, 12 B from s3://bucket/job/" in result.log
    assert objects(server) == step(8)
    assert not base.path("output/failure").exists()


def test_a_checkpoint_is_in_the_bucket_while_the_script_runs(
    base: Base, server: Server, folder: Path
) -> None:
    checkpointing(base, server.url)
    running = base.script(PRELUDE + "checkpoint(1)\nuntil(folder + '/../go')").start()
    arrives(server, **step(1))
    assert running.process.poll() is None
    base.write("go", "")
    assert running.wait().status == 0


@pytest.mark.parametrize("kind", ["TensorBoard", "intermediate", "intermediate, managed"])
def test_logs_and_intermediate_output_are_in_the_bucket_while_the_script_runs(
    base: Base, server: Server, kind: str
) -> None:
    if kind == "TensorBoard":
        place = {"S3OutputPath": "s3://bucket/tb", "LocalPath": str(base.path("tb"))}
        request(base, server.url, TensorBoardOutputConfig=place)
        local, key = base.path("tb"), "tb/a-job/tensorboard-output"
    elif kind == "intermediate":
        rl = {"sagemaker_s3_output": '"s3://bucket/rl"'}
        request(base, server.url, HyperParameters=rl)
        local, key = base.path("output/intermediate"), "rl/a-job/output/intermediate"
    else:
        reach(base, server.url)
        base.hyperparameters(sagemaker_s3_output='"s3://bucket/rl"')
        base.environ["TRAINING_JOB_NAME"] = "a-job"
        local, key = base.path("output/intermediate"), "rl/a-job/output/intermediate"
    base.environ["FOLDER"] = str(local)
    script = f"save('deep/plot', 'p')\nuntil({str(base.path('go'))!r})\n"
    wanted = {f"{key}/deep/plot": b"p"}
    if kind == "TensorBoard":
        grow = (
            "log = open(folder + '/events.out.tfevents.1', 'w')\nlog.write('open')\nlog.flush()\n"
        )
        script = grow + script
        wanted[f"{key}/events.out.tfevents.1"] = b"open"
    running = base.script(PRELUDE + script).start()
    arrives(server, **wanted)
    assert running.process.poll() is None
    base.write("go", "")
    result = running.wait()
    assert result.status == 0, result.log
    assert objects(server) == wanted


STOPPED = {
    "saves and ends": (
        "def last(*_):\n    checkpoint(2)\n    sys.exit(0)\nsignal.signal(signal.SIGTERM, last)\n",
        0,
        2,
    ),
    "saves and is killed": ("signal.signal(signal.SIGTERM, lambda *_: checkpoint(2))\n", 143, 2),
    "does not know of stops": ("", 143, 1),
}


@pytest.mark.parametrize("case", STOPPED)
def test_what_was_saved_at_a_stop_is_in_the_bucket(
    base: Base, server: Server, folder: Path, case: str
) -> None:
    checkpointing(base, server.url)
    handler, status, last = STOPPED[case]
    script = handler + "checkpoint(1)\nprint('ready', flush=True)\nuntil('/nonexistent')\n"
    running = base.script(PRELUDE + script).start(SM_RUNTIME_STOP_GRACE_SECONDS="2")
    running.ready()
    running.send(signal.SIGTERM)
    result = running.wait()
    assert result.status == status, result.log
    assert objects(server).items() >= step(last).items()
    assert files(folder).items() <= files(server.folder / "bucket/job").items()


def sending(request: Request) -> bool:
    return request.method == "PUT" and "/job/" in request.path


def stopped(base: Base, server: Server, plan: Plan, **environ: str) -> int:
    """Stop a job that has saved, its storage being out of order; return its status."""
    with proxying(server.url, plan) as proxy:
        checkpointing(base, proxy.url)
        script = (
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
            "checkpoint(1)\nprint('ready', flush=True)\nuntil('/nonexistent')\n"
        )
        running = base.script(PRELUDE + script).start(**environ)
        running.ready()
        running.send(signal.SIGTERM)
        return running.wait(PATIENT).status


def test_a_store_that_does_not_answer_is_given_up_before_the_engine_kills(
    base: Base, server: Server, folder: Path
) -> None:
    """Nothing else ends this within the proxy's own 60 s."""
    status = stopped(
        base, server, lambda one: "mute" if sending(one) else None,
        SM_RUNTIME_STOP_TIMEOUT_SECONDS="4",
    )  # fmt: skip
    assert status == 1
    assert base.failure().startswith("ArtifactError: checkpoints: 2 of 2 files are not in")
    assert "s3://bucket/job/" in base.failure()
    assert sorted(files(folder)) == ["checkpoint", "ckpt-1.data"]


def test_checkpoints_that_cannot_be_sent_fail_the_job_and_stay(
    base: Base, server: Server, folder: Path
) -> None:
    status = stopped(
        base, server, lambda one: "denied" if sending(one) else None,
        SM_RUNTIME_STOP_TIMEOUT_SECONDS="4",
    )  # fmt: skip
    assert status == 1
    assert "access is denied" in base.failure()
    assert sorted(files(folder)) == ["checkpoint", "ckpt-1.data"]
    assert objects(server) == {}


def test_checkpoints_that_cannot_be_had_keep_the_script_from_starting(
    base: Base, server: Server, folder: Path
) -> None:
    server.put("s3://bucket/job/checkpoint", b"1")
    with proxying(server.url, always("denied")) as proxy:
        checkpointing(base, proxy.url)
        result = base.script("print('ran')").run()
    assert (result.status, result.out) == (1, b"")
    assert base.failure().startswith("DataError: s3://bucket/job/checkpoint")
    assert objects(server) == {"job/checkpoint": b"1"}


def test_a_model_is_sent_while_the_last_checkpoints_cannot_be(base: Base, server: Server) -> None:
    """After a stop there is little time: one does not wait for the other."""

    def plan(one: Request) -> str | None:
        return "mute" if sending(one) else None

    with proxying(server.url, plan) as proxy:
        place = {"S3OutputPath": "s3://bucket/out"}
        checkpointing(base, proxy.url, OutputDataConfig=place)
        base.environ["FOLDER"] = str(base.path("ck"))
        script = (
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
            "save('weights', 'w', os.environ['SM_MODEL_DIR'])\ncheckpoint(1)\n"
            "print('ready', flush=True)\nuntil('/nonexistent')\n"
        )
        running = base.script(PRELUDE + script).start(SM_RUNTIME_STOP_TIMEOUT_SECONDS="8")
        running.ready()
        running.send(signal.SIGTERM)
        eventually(lambda: "out/a-job/output/model.tar.gz" in objects(server), "the model", PATIENT)
        assert running.process.poll() is None
        assert running.wait(PATIENT).status == 1


@contextmanager
def role(now: Callable[[], str]) -> Iterator[str]:
    """Serve the credentials of a container's role, with the session token of the moment."""

    class Handler(Answers):
        def do_GET(self) -> None:
            body = json.dumps(
                {
                    "AccessKeyId": CREDENTIALS["AWS_ACCESS_KEY_ID"],
                    "SecretAccessKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
                    "Token": now(),
                    "Expiration": "2099-01-01T00:00:00Z",
                }
            )
            self.say(body)

    with answering(Handler) as url:
        yield f"{url}/role"


def test_a_job_outlives_the_credentials_of_its_role(
    base: Base, server: Server, folder: Path
) -> None:
    """They are revoked between two checkpoints, long before the time that they named."""
    tokens = ["first"]

    def plan(one: Request) -> str | None:
        return "expired" if one.headers.get("x-amz-security-token") != tokens[-1] else None

    with role(lambda: tokens[-1]) as url, proxying(server.url, plan) as proxy:
        checkpointing(base, proxy.url, OutputDataConfig={"S3OutputPath": "s3://bucket/out"})
        for name in CREDENTIALS:
            del base.environ[name]
        go = str(base.path("go"))
        script = (
            f"checkpoint(1)\nuntil({go!r})\ncheckpoint(2)\n"
            "save('weights', 'w', os.environ['SM_MODEL_DIR'])\n"
        )
        running = base.script(PRELUDE + script).start(AWS_CONTAINER_CREDENTIALS_FULL_URI=url)
        arrives(server, **step(1))
        tokens.append("second")
        base.write("go", "")
        result = running.wait(PATIENT)
        assert proxy.seen("expired")
    assert result.status == 0, result.log
    arrives(server, **step(2))
    assert "out/a-job/output/model.tar.gz" in objects(server)


# --- model_dir


def test_a_model_dir_in_s3_is_a_local_folder_that_is_synced(base: Base, server: Server) -> None:
    server.put("s3://bucket/model/checkpoint", b"ckpt-7")
    request(base, server.url, HyperParameters={"model_dir": "s3://bucket/model"})
    script = (
        "folder = sys.argv[sys.argv.index('--model_dir') + 1]\n"
        "assert folder == os.environ['SM_HP_MODEL_DIR'] and not folder.startswith('s3:')\n"
        "print(open(folder + '/checkpoint').read())\n"
        "save('ckpt-8.data', '8', folder)\nsave('checkpoint', 'ckpt-8', folder)\n"
    )
    result = base.script(PRELUDE + script).run()
    assert (result.status, result.out) == (0, b"ckpt-7\n"), result.log
    assert objects(server) == {"model/checkpoint": b"ckpt-8", "model/ckpt-8.data": b"8"}
    assert "s3://bucket/model" in result.log
    assert "S3_REQUEST_TIMEOUT_MSEC" not in result.log


def variables(base: Base, **environ: str) -> dict[str, str]:
    """Return what a script that is given an S3 URI finds for TensorFlow's own S3 client."""
    names = (
        *("S3_REGION", "S3_USE_HTTPS", "S3_ENDPOINT", "S3_REQUEST_TIMEOUT_MSEC"),
        *("AWS_LOG_LEVEL", "TF_CPP_MIN_LOG_LEVEL"),
    )
    show = f"import os\nfor n in {names!r}:\n    print(n, os.environ.get(n))\n"
    base.environ.pop("SAGEMAKER_REGION", None)
    result = base.script(show).run(**environ)
    assert result.status == 0, result.log
    return dict(line.split() for line in result.out.decode().splitlines())


def test_a_script_that_is_given_an_s3_uri_has_tensorflows_client_set_up(base: Base) -> None:
    uri = {"model_dir": "s3://bucket/model"}
    request(base, "http://127.0.0.1:9", HyperParameters=uri, Environment={"AWS_LOG_LEVEL": "6"})
    assert variables(
        base,
        SM_RUNTIME_REDIRECT_MODEL_DIR="0",
        S3_REQUEST_TIMEOUT_MSEC="7",
        AWS_REGION="eu-west-1",
    ) == {
        "S3_REGION": "eu-west-1",
        "S3_USE_HTTPS": "0",
        "S3_ENDPOINT": "127.0.0.1:9",
        "S3_REQUEST_TIMEOUT_MSEC": "7",
        "AWS_LOG_LEVEL": "6",
        "TF_CPP_MIN_LOG_LEVEL": "1",
    }


def test_a_script_without_an_s3_uri_has_nothing_set(base: Base) -> None:
    base.hyperparameters(model_dir='"/opt/ml/model"')
    assert set(variables(base, AWS_REGION="eu-west-1").values()) == {"None"}

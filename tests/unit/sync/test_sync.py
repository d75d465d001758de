"""What is synced, in which order, and what is left out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sm_runtime import sync
from sm_runtime.contract.environment import tensorflow_variables
from sm_runtime.contract.load import redirected, redirection
from sm_runtime.job.errors import ConfigError
from sm_runtime.job.model import Cluster, Job, Options, Paths, Sync
from sm_runtime.sync.folders import folders
from sm_runtime.sync.snapshot import (
    MAX_KEY_BYTES,
    Ledger,
    is_growing,
    is_temporary,
    is_unchanged,
    rank,
    scan,
    signature,
    take,
)

ALONE = Cluster(current_host="algo-1", hosts=("algo-1",))
SECOND = Cluster(current_host="algo-2", hosts=("algo-1", "algo-2"))


def job(base: str = "/opt/ml", **fields: Any) -> Job:
    known: dict[str, Any] = {"name": "a-job", "cluster": ALONE, "managed": False}
    return Job(paths=Paths(base), **(known | fields))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ckpt-5.data-00000-of-00001", 0),
        ("weights/checkpoint-500/model.safetensors", 0),
        ("model-1.keras", 0),
        ("checkpoint_3.pt", 0),
        ("ckpt-5.index", 1),
        ("model.safetensors.index.json", 1),
        ("checkpoint", 2),
        ("run/checkpoint", 2),
        ("latest", 2),
        ("latest.txt", 2),
        ("latest_checkpointed_iteration.txt", 2),
        ("last.ckpt", 2),
        ("1000/_CHECKPOINT_METADATA", 2),
        ("1000/commit_success.txt", 2),
        ("_SUCCESS", 2),
    ],
)
def test_data_goes_before_indexes_and_these_before_pointers(name: str, expected: int) -> None:
    assert rank(name) == expected


@pytest.mark.parametrize(
    ("name", "temporary"),
    [
        ("x.tmp", True),
        ("x.tmp1234", True),
        ("x.tmp.1234", True),
        (".tmp", True),
        ("tmp/x", True),
        ("tmp-checkpoint-500/model.bin", True),
        ("checkpoint.tmpa1b2c3d4e5f60718", True),
        ("model.ckpt-1_temp_0a1b2c3d/part-00000-of-00001.index", True),
        ("x.temp", True),
        ("x_temp12", True),
        ("ckpt-1_temp/part-00000-of-00001.data-00000-of-00001", True),
        ("checkpoint.tmp0c1d", True),
        ("ckpt-1.index.tempstate1234", True),
        ("1000.orbax-checkpoint-tmp-17/x", True),
        ("x.part", True),
        ("x~", True),
        (".x.swp", True),
        ("temperature.npy", False),
        ("sweep_temperature/1", False),
        ("additional_chat_templates/rag.jinja", False),
        ("chat_template.json", False),
        ("prompt_templates/a", False),
        ("email_templates/a", False),
        ("model_temporal/weights", False),
        ("lr_temp_beta_1/weights", False),
        ("temp_sensor.csv", False),
        ("tmpl_8_chars", False),
        ("contemp", False),
        ("tmpl/x", False),
        ("part-1.bin", False),
        ("weights.part.1", False),
        ("attempt/x", False),
        ("checkpoint", False),
    ],
)
def test_names_tell_what_is_not_complete(name: str, temporary: bool) -> None:
    assert is_temporary(name) == temporary


def test_logs_are_known_by_their_names() -> None:
    names = ("events.out.tfevents.1.h", "a/train.log", "history.csv", "latest.log", "vocab.txt")
    assert [is_growing(name) for name in names] == [True, True, True, False, False]


def test_a_scan_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "w").write_bytes(b"abc")
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "up").symlink_to(folder)
    (folder / "linked").symlink_to(outside)
    (folder / "nowhere").symlink_to(tmp_path / "absent")
    os.mkfifo(folder / "fifo")
    listing = scan(str(folder))
    assert listing is not None
    assert {name: status.st_size for name, status in listing.items()} == {"linked/w": 3}


def test_a_folder_that_is_not_there_has_no_listing(tmp_path: Path) -> None:
    assert scan(str(tmp_path / "absent")) is None


def test_a_snapshot_keeps_what_is_deleted_meanwhile(tmp_path: Path) -> None:
    for name in ("ckpt-1.data", "checkpoint"):
        (tmp_path / name).write_text(name)
    before = scan(str(tmp_path)) or {}
    with take(str(tmp_path), before, lambda listing: [*listing]) as snapshot:
        assert snapshot.consistent
        (tmp_path / "ckpt-1.data").unlink()
        source = snapshot.open("ckpt-1.data")
        assert os.pread(source, 100, 0) == b"ckpt-1.data"
        os.close(source)
    assert not [n for n in os.listdir("/proc/self/fd") if str(tmp_path) in _target(n)]


def _target(number: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""


@pytest.mark.parametrize("change", ["pointer", "file", "none"])
def test_a_snapshot_is_consistent_only_if_nothing_changed_while_it_was_taken(
    tmp_path: Path, change: str
) -> None:
    for name in ("data", "checkpoint"):
        (tmp_path / name).write_text(name)
    calls = []

    def changed(listing: object) -> list[str]:
        calls.append(listing)
        if change == "pointer":
            (tmp_path / "new").write_text(str(len(calls)))
            (tmp_path / "new").rename(tmp_path / "checkpoint")
        elif change == "file":
            (tmp_path / f"data-{len(calls)}").write_text("x")
        return ["data"]

    before = scan(str(tmp_path)) or {}
    with take(str(tmp_path), before, changed) as snapshot:
        assert snapshot.consistent == (change == "none")


def test_a_folder_that_is_gone_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    with take(str(tmp_path / "absent"), {}, lambda listing: [*listing]) as snapshot:
        assert (snapshot.listing, snapshot.consistent) == ({}, False)


def test_a_file_that_is_rewritten_in_its_place_has_another_signature(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"1")
    before = path.stat()
    path.write_bytes(b"2")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync and some writers do
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert signature(after) != signature(before)


def test_names_that_object_storage_cannot_hold_are_known(tmp_path: Path) -> None:
    ok, odd = "x" * 200, os.fsdecode(b"\xff")
    (tmp_path / ok).write_text("")
    (tmp_path / odd).write_text("")
    listing = scan(str(tmp_path)) or {}
    assert Ledger("c/").without_key(listing) == [odd]
    assert Ledger("c/").differing(listing) == [ok]
    assert Ledger("c" * (MAX_KEY_BYTES - 200)).without_key(listing) == [odd]
    assert Ledger("c" * (MAX_KEY_BYTES - 199)).without_key(listing) == [ok, odd]
    assert Ledger(None).without_key(listing) == []
    assert sorted(Ledger(None).differing(listing)) == [ok, odd]


def test_names_of_what_is_not_complete_count_until_nothing_writes_any_more(tmp_path: Path) -> None:
    for name in ("x.tmp", "x", "x.sm-runtime.part"):
        (tmp_path / name).write_text("")
    listing = scan(str(tmp_path)) or {}
    ledger = Ledger("c/")
    assert ledger.differing(listing) == ["x"]
    ledger.finalize()
    assert sorted(ledger.differing(listing)) == ["x", "x.tmp"]


def test_what_was_mapped_is_sent_once_more_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    listing = scan(str(tmp_path)) or {}
    ledger = Ledger("c/")
    ledger.mapped(["x"])
    ledger.sent("x", signature(listing["x"]), again_at=None)
    assert ledger.differing(listing) == []
    ledger.finalize()
    assert ledger.differing(listing) == ["x"]
    ledger.sent("x", signature(listing["x"]), again_at=None)
    assert ledger.differing(listing) == []


def test_a_job_that_wants_nothing_synced_has_no_syncs() -> None:
    assert sync.open_syncs(job(), {}) is None


def test_each_folder_has_its_place_and_its_rules() -> None:
    found = folders(
        job(
            checkpoints=Sync(local_path="/opt/ml/checkpoints/", uri="s3://b/c/"),
            tensorboard=Sync(local_path="/opt/ml/output/tensorboard", uri="s3://b/t"),
            model_dir=Sync(local_path="/opt/ml/shared/model", uri="s3://b/m"),
            reserved={"sagemaker_s3_output": "s3://b/rl"},
        )
    )
    assert [
        (f.what, f.path, f.place, f.restores, f.deletes, f.grows, f.required, f.uploads)
        for f in found
    ] == [
        ("checkpoints", "/opt/ml/checkpoints", "s3://b/c/", True, True, False, True, True),
        ("model_dir", "/opt/ml/shared/model", "s3://b/m/", True, True, False, True, True),
        ("TensorBoard logs", "/opt/ml/output/tensorboard", "s3://b/t/a-job/tensorboard-output/",
         False, False, True, False, True),
        ("intermediate output", "/opt/ml/output/intermediate", "s3://b/rl/a-job/output/intermediate/",
         False, False, False, False, True),
    ]  # fmt: skip


def test_a_host_that_does_not_lead_sends_checkpoints_but_no_model_dir() -> None:
    found = folders(
        job(
            cluster=SECOND,
            checkpoints=Sync(local_path="/opt/ml/checkpoints", uri="s3://b/c"),
            model_dir=Sync(local_path="/opt/ml/shared/model", uri="s3://b/m"),
        )
    )
    assert [(f.what, f.restores, f.uploads) for f in found] == [
        ("checkpoints", True, True),
        ("model_dir", True, False),
    ]


def test_intermediate_output_is_the_platforms_where_its_folder_is_there(tmp_path: Path) -> None:
    reserved = {"sagemaker_s3_output": "s3://b/rl"}
    assert len(folders(job(str(tmp_path), reserved=reserved))) == 1
    (tmp_path / "output" / "intermediate").mkdir(parents=True)
    assert folders(job(str(tmp_path), reserved=reserved)) == ()


def test_intermediate_output_at_a_file_uri_is_only_a_folder(tmp_path: Path) -> None:
    reserved = {"sagemaker_s3_output": "file:///anywhere"}
    syncs = sync.open_syncs(job(str(tmp_path), reserved=reserved), {})
    assert syncs is not None
    syncs.restore()
    syncs.start()
    assert syncs.finish(5) == ()
    assert (tmp_path / "output" / "intermediate").is_dir()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (
            {"reserved": {"sagemaker_s3_output": "hdfs://x"}},
            "hyperparameters: sagemaker_s3_output: 'hdfs://x' is no s3:// or file:// URI",
        ),
        (
            {"checkpoints": Sync(local_path="/opt/ml/checkpoints", uri="ftp://x")},
            "CheckpointConfig.S3Uri: 'ftp://x' is no file:// or s3:// URI",
        ),
        (
            {"checkpoints": Sync(local_path="/a/b", uri="file:///a")},
            "CheckpointConfig.S3Uri: 'file:///a' puts artifacts into /a, which",
        ),
    ],
)
def test_a_place_that_cannot_be_used_is_refused_early(fields: Any, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sync.open_syncs(job(**fields), {})
    assert str(caught.value).startswith(why)


REMOTE: dict[str, Any] = {"hyperparameters": {"model_dir": "s3://b/m", "x": 1}, "texts": {"x": "1"}}


def test_a_model_dir_in_s3_is_a_local_folder_to_the_script() -> None:
    found = redirected(job(**REMOTE), bool)
    assert found.hyperparameters == {"model_dir": "/opt/ml/shared/model", "x": 1}
    assert found.texts == {"model_dir": '"/opt/ml/shared/model"', "x": "1"}
    assert found.model_dir == Sync(local_path="/opt/ml/shared/model", uri="s3://b/m")
    assert "SM_RUNTIME_REDIRECT_MODEL_DIR=0" in str(redirection(found))


@pytest.mark.parametrize(
    "fields",
    [
        {**REMOTE, "managed": True},
        {**REMOTE, "options": Options(redirect_model_dir=False)},
        {"hyperparameters": {"model_dir": "/opt/ml/model"}},
        {"hyperparameters": {"model_dir": False}},
        {},
    ],
    ids=["managed", "opted out", "local", "no text", "none"],
)
def test_another_model_dir_is_left_alone(fields: Any) -> None:
    given = job(**fields)
    assert redirected(given, bool) is given
    assert redirection(given) is None


def test_a_managed_job_may_ask_for_a_local_model_dir() -> None:
    found = redirected(job(**REMOTE, managed=True, options=Options(redirect_model_dir=True)), bool)
    assert found.model_dir is not None


def test_a_managed_job_gets_a_local_model_dir_where_tensorflow_cannot_open_the_uri() -> None:
    given = job(**REMOTE, managed=True)
    found = redirected(given, lambda: True)
    assert found.model_dir == Sync(local_path="/opt/ml/shared/model", uri="s3://b/m", optional=True)
    assert str(redirection(found)).startswith(
        "TensorFlow has no S3 file system here: model_dir is "
    )
    refused = job(**REMOTE, managed=True, options=Options(redirect_model_dir=False))
    assert redirected(refused, lambda: True) is refused


def test_tensorflows_own_s3_is_told_what_it_needs() -> None:
    given = job(**REMOTE, region="eu-west-1", environment={"AWS_LOG_LEVEL": "1"})
    assert tensorflow_variables(given, {"TF_CPP_MIN_LOG_LEVEL": "0"}) == {
        "S3_REGION": "eu-west-1",
        "S3_USE_HTTPS": "1",
        "S3_REQUEST_TIMEOUT_MSEC": "60000",
    }
    assert tensorflow_variables(job(), {}) == {}


def test_tensorflows_own_s3_goes_to_the_endpoint_of_the_job() -> None:
    found = tensorflow_variables(job(**REMOTE), {"AWS_ENDPOINT_URL_S3": "http://minio:9000/"})
    assert (found["S3_ENDPOINT"], found["S3_USE_HTTPS"]) == ("minio:9000", "0")


@pytest.mark.parametrize(
    ("managed", "options", "grace", "whole"),
    [
        (True, {}, 110, 117),
        (False, {}, 90, 117),
        (False, {"stop_timeout_seconds": 30}, 22.5, 28.5),
        (True, {"stop_timeout_seconds": 30}, 20, 28.5),
        (True, {"stop_timeout_seconds": 10}, 5, 9.5),
        (False, {"stop_grace_seconds": 100}, 100, 117),
        (False, {"stop_grace_seconds": 600}, 600, 797),  # whoever sets that has more than 120
        (False, {"stop_grace_seconds": 600, "stop_timeout_seconds": 700}, 600, 697),
    ],
)
def test_after_a_stop_there_is_time_to_save_before_the_engine_kills(
    managed: bool, options: Any, grace: float, whole: float
) -> None:
    found = job(managed=managed, options=Options(**options))
    assert (found.stop_grace_seconds, found.stop_seconds) == (grace, whole)


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_is_gone_by_its_name_is_unchanged_to_who_has_it_open(
    tmp_path: Path, how: str
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"1")
    with open(path, "rb") as file:
        before = os.fstat(file.fileno())
        if how == "deleted":
            path.unlink()
        else:
            (tmp_path / "new").write_bytes(b"2")
            (tmp_path / "new").rename(path)
        assert is_unchanged(before, os.fstat(file.fileno()))

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from sm_runtime.job.errors import ArtifactError, ConfigError
from sm_runtime.job.model import Cluster, Job, Options, Output, Paths, Sync
from sm_runtime.output import artifacts
from sm_runtime.storage import open_store
from tests.harness import eventually
from tests.s3 import CREDENTIALS, Server, serving

KIB, MIB = 1 << 10, 1 << 20
ALONE = Cluster(current_host="algo-1", hosts=("algo-1",))


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def fill(root: Path, files: dict[str, bytes]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def files_of(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def untarred(archive: Path, tmp_path: Path) -> dict[str, bytes]:
    """Extract with the real tar and gzip, which must say nothing."""
    folder = tmp_path / f"untarred-{archive.name}"
    folder.mkdir()
    for command in (["gzip", "-t", archive], ["tar", "xzf", archive, "-C", folder]):
        done = subprocess.run(command, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
    return files_of(folder)


class Case:
    """A job below a temporary folder; ``out`` is where its artifacts go."""

    def __init__(self, tmp_path: Path) -> None:
        self.base = tmp_path / "opt" / "ml"
        self.model = fill(self.base / "model", {})
        self.data = fill(self.base / "output" / "data", {})
        self.target = tmp_path / "target"
        self.out = self.target / "a-job" / "output"

    def job(self, *, compression: str = "GZIP", uri: str | None = None, **fields: Any) -> Job:
        output = Output(uri=uri or f"file://{self.target}", compression=compression)
        known = {"name": "a-job", "cluster": ALONE, "managed": False, "output": output}
        return Job(paths=Paths(str(self.base)), **(known | fields))

    def managed(self, **fields: Any) -> Job:
        return self.job(**{"managed": True, "output": None, **fields})


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@pytest.fixture(autouse=True)
def warned(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


SAVED_MODEL = {
    "1/saved_model.pb": b"graph" * 1000,
    "1/variables/variables.data-00000-of-00001": noise(300 * KIB),
    "1/variables/variables.index": b"index",
}


def test_both_archives_are_where_the_platform_would_put_them(case: Case, tmp_path: Path) -> None:
    fill(case.model, SAVED_MODEL)
    fill(case.data, {"plots/loss.png": b"png"})
    artifacts.save(case.job())
    assert sorted(os.listdir(case.out)) == ["model.tar.gz", "output.tar.gz"]
    assert untarred(case.out / "model.tar.gz", tmp_path) == SAVED_MODEL
    assert untarred(case.out / "output.tar.gz", tmp_path) == {"plots/loss.png": b"png"}


def test_the_summary_says_how_much_is_where(case: Case) -> None:
    fill(case.model, SAVED_MODEL)
    fill(case.base / "checkpoints", {"ckpt-1": bytes(1536)})
    job = case.job()
    lines = artifacts.summary_lines(job, artifacts.save(job))
    assert re.fullmatch(
        rf"model: 3 files, 304\.9 KiB -> file://{case.out}/model\.tar\.gz"
        r" \(30\d\.\d KiB, \d+\.\d s\)",
        lines[0],
    )
    assert lines[1:] == [
        f"output data: no files in {case.data}",
        f"checkpoints: 1 file, 1.5 KiB in {case.base}/checkpoints",
    ]


def test_checkpoints_are_counted_where_the_request_has_them(case: Case) -> None:
    local = fill(case.base / "elsewhere", {"a": b"1", "b": b"2"})
    job = case.job(checkpoints=Sync(local_path=str(local), uri="s3://bucket/checkpoints"))
    assert artifacts.summary_lines(job, artifacts.save(job))[-1] == (
        f"checkpoints: 2 files, 2 B in {local}"
    )


def test_equal_folders_give_equal_archives_with_any_number_of_threads(case: Case) -> None:
    files = {f"{n}/weights": noise(700 * KIB, n) + bytes(700 * KIB) for n in range(4)}
    digests = set()
    for name, threads in (("one", 1), ("two", 2), ("five", 5)):
        fill(case.model, dict(reversed(files.items()) if threads == 2 else files.items()))
        os.utime(case.model / "1" / "weights", (threads * 1e8, threads * 1e8))
        artifacts.save(case.job(name=name), threads=threads)
        archive = case.target / name / "output" / "model.tar.gz"
        digests.add(hashlib.sha256(archive.read_bytes()).hexdigest())
        subprocess.run(["rm", "-r", *case.model.iterdir()], check=True)
    assert len(digests) == 1


def test_without_compression_the_files_themselves_are_saved(case: Case) -> None:
    fill(case.model, SAVED_MODEL | {"run.sh": b"#!/bin/sh"})
    os.chmod(case.model / "run.sh", 0o700)
    (case.model / "link").symlink_to("1/saved_model.pb")
    fill(case.data, {"loss.csv": b"1,2"})
    job = case.job(compression="NONE")
    saved = artifacts.save(job)
    assert files_of(case.out / "model") == files_of(case.model)
    assert not (case.out / "model" / "link").is_symlink()
    assert os.access(case.out / "model" / "run.sh", os.X_OK)
    assert files_of(case.out / "data") == {"loss.csv": b"1,2"}
    assert sorted(os.listdir(case.out)) == ["data", "model"]
    assert f"-> file://{case.out}/model (" in artifacts.summary_lines(job, saved)[0]


def test_a_file_is_copied_across_file_systems(case: Case) -> None:
    fill(case.model, {"weights": noise(3 * MIB + 1)})
    shared = Path("/dev/shm") / f"sm-runtime-{os.getpid()}"
    try:
        artifacts.save(case.job(compression="NONE", uri=f"file://{shared}"))
        assert files_of(shared / "a-job" / "output" / "model") == files_of(case.model)
    finally:
        subprocess.run(["rm", "-rf", shared], check=True)


def test_nothing_of_an_earlier_attempt_is_left_among_the_files(case: Case) -> None:
    fill(case.model, {"old": b"1", "both": b"1"})
    job = case.job(compression="NONE")
    artifacts.save(job)
    (case.model / "old").unlink()
    fill(case.model, {"both": b"2", "new": b"2"})
    artifacts.save(job)
    assert files_of(case.out) == {"model/both": b"2", "model/new": b"2"}


@pytest.mark.parametrize(
    ("compression", "left", "ours"),
    [
        ("GZIP", {"model.tar.gz.part": b"half"}, "model.tar.gz"),
        ("NONE", {"model.part/weights": b"half"}, "model"),
        ("NONE", {"model.part/weights": b"half", "model.old/weights": b"old"}, "model"),
        ("NONE", {"model/weights": b"old", "model.old/weights": b"older"}, "model"),
    ],
)
def test_what_a_killed_attempt_left_is_swept(
    case: Case, compression: str, left: dict[str, bytes], ours: str
) -> None:
    fill(case.model, {"weights": b"new"})
    fill(case.out, left)
    artifacts.save(case.job(compression=compression))
    assert os.listdir(case.out) == [ours]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(("compression", "name"), [("GZIP", "model.tar.gz"), ("NONE", "model")])
def test_a_full_disk_is_an_error_and_leaves_what_was_there(
    case: Case, small_disk: Path, compression: str, name: str
) -> None:
    fill(case.model, {"weights": b"first"})
    job = case.job(compression=compression, uri=f"file://{small_disk}")
    artifacts.save(job)
    before = files_of(small_disk)
    fill(case.model, {"weights": noise(5 * MIB)})
    with pytest.raises(ArtifactError) as caught:
        artifacts.save(job)
    message = str(caught.value)
    assert f"{small_disk}/a-job/output/{name}" in message
    assert "the model cannot be saved to" in message
    assert message.endswith("No space left on device")
    assert files_of(small_disk) == before
    assert files_of(case.model) == {"weights": noise(5 * MIB)}


@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
def test_a_destination_that_cannot_be_written_is_an_error_that_names_it(
    case: Case, small_disk: Path, compression: str
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    fill(case.model, {"weights": b"1"})
    with pytest.raises(ArtifactError, match=rf"to file://{small_disk}/.*: Read-only file system$"):
        artifacts.save(case.job(compression=compression, uri=f"file://{small_disk}"))


@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
def test_an_attempt_that_is_killed_leaves_nothing_under_a_final_name(
    case: Case, compression: str
) -> None:
    fill(case.model, {f"weights-{number}": noise(24 * MIB, number) for number in range(4)})
    program = (
        "import sys\n"
        "from sm_runtime.output import artifacts\n"
        "from sm_runtime.job.model import Cluster, Job, Output, Paths\n"
        "output = Output(uri=sys.argv[2], compression=sys.argv[3])\n"
        "cluster = Cluster(current_host='a', hosts=('a',))\n"
        "job = Job(paths=Paths(sys.argv[1]), name='a-job', cluster=cluster, output=output,\n"
        "    managed=False)\n"
        "artifacts.save(job)\n"
    )
    command = [sys.executable, "-c", program, case.base, f"file://{case.target}", compression]
    with subprocess.Popen(command) as process:
        eventually(lambda: case.out.is_dir() and any(case.out.iterdir()), "a first byte")
        process.kill()
    assert [path.suffix for path in case.out.iterdir()] == [".part"]
    artifacts.save(case.job(compression=compression))
    assert [path.name for path in case.out.iterdir()] == [
        {"GZIP": "model.tar.gz", "NONE": "model"}[compression]
    ]


def test_the_output_data_is_saved_though_the_model_cannot_be(
    case: Case, small_disk: Path, warned: pytest.LogCaptureFixture
) -> None:
    fill(case.model, {"weights": noise(5 * MIB)})
    fill(case.data, {"loss.csv": b"1,2"})
    with pytest.raises(ArtifactError, match=r"^the model cannot be saved to [^;]*$"):
        artifacts.save(case.job(uri=f"file://{small_disk}"))
    assert os.listdir(small_disk / "a-job" / "output") == ["output.tar.gz"]
    assert f"output data: 1 file, 3 B -> file://{small_disk}" in warned.text


def test_both_failures_are_named(case: Case, small_disk: Path) -> None:
    fill(case.model, {"weights": noise(5 * MIB)})
    fill(case.data, {"big": noise(5 * MIB)})
    with pytest.raises(ArtifactError, match=r"the model cannot .*; the output data cannot .*"):
        artifacts.save(case.job(uri=f"file://{small_disk}"))
    assert files_of(small_disk) == {}


def test_a_destination_that_is_a_file_is_an_error_that_names_it(case: Case) -> None:
    fill(case.model, {"weights": b"1"})
    case.target.write_bytes(b"")
    with pytest.raises(ArtifactError, match=rf"saved to file://{case.out}/model.tar.gz: Not a dir"):
        artifacts.save(case.job())


@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(compression: str) -> None:
    before = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        case = Case(Path(name))
        fill(case.model, {"a": b"1", "secret": b"2"})
        os.chmod(case.model / "secret", 0)
        os.chmod(fill(case.target, {}), 0o777)
        os.seteuid(65534 if before == 0 else before)
        try:
            with pytest.raises(ArtifactError) as caught:
                artifacts.save(case.job(compression=compression))
            assert str(caught.value) == (
                f"the model is not saved: {case.model}/secret cannot be read: Permission denied"
            )
            assert files_of(case.target) == {}
        finally:
            os.seteuid(before)


def test_an_empty_model_folder_is_a_warning(case: Case, warned: pytest.LogCaptureFixture) -> None:
    (case.model / "1" / "assets").mkdir(parents=True)
    fill(case.data, {"loss.csv": b"1,2"})
    artifacts.save(case.job())
    assert os.listdir(case.out) == ["output.tar.gz"]
    assert warnings_of(warned) == [
        f"{case.model} is empty, so no model is saved;"
        " the script writes to SM_MODEL_DIR what is to be kept"
    ]


def test_an_absent_model_folder_is_an_empty_one(
    case: Case, warned: pytest.LogCaptureFixture
) -> None:
    case.model.rmdir()
    artifacts.save(case.job())
    assert not case.target.exists()
    assert len(warnings_of(warned)) == 1


def test_a_model_dir_in_object_storage_is_named_where_the_folder_is_empty(
    case: Case, warned: pytest.LogCaptureFixture
) -> None:
    artifacts.save(case.managed(hyperparameters={"model_dir": "s3://bucket/a-job/model"}))
    assert warnings_of(warned) == [
        f"{case.model} is empty, so no model is saved; hyperparameter model_dir is"
        " s3://bucket/a-job/model: the script may have written it there"
    ]


def test_a_model_of_an_earlier_attempt_is_kept_and_named(
    case: Case, warned: pytest.LogCaptureFixture
) -> None:
    fill(case.model, {"weights": b"1"})
    artifacts.save(case.job())
    (case.model / "weights").unlink()
    artifacts.save(case.job())
    assert (case.out / "model.tar.gz").exists()
    assert f"model.tar.gz is of an earlier attempt: {case.model} is empty now" in warned.text


@pytest.mark.parametrize("managed", [True, False])
def test_require_model_fails_a_job_without_a_model_but_saves_the_rest(
    case: Case, managed: bool
) -> None:
    fill(case.data, {"loss.csv": b"1,2"})
    options = Options(require_model=True)
    job = case.managed(options=options) if managed else case.job(options=options)
    with pytest.raises(ArtifactError) as caught:
        artifacts.save(job)
    assert str(caught.value) == f"require_model is set and {case.model} is empty"
    assert (case.out / "output.tar.gz").exists() != managed


def test_require_model_is_content_with_a_model(case: Case) -> None:
    fill(case.model, {"weights": b"1"})
    artifacts.save(case.job(options=Options(require_model=True)))
    assert (case.out / "model.tar.gz").exists()


def test_in_a_managed_job_nothing_is_written_and_all_is_counted(
    case: Case, warned: pytest.LogCaptureFixture
) -> None:
    fill(case.model, SAVED_MODEL)
    (case.model / "latest").symlink_to("1/saved_model.pb")
    before = sorted(case.base.rglob("*"))
    job = case.managed()
    lines = artifacts.summary_lines(job, artifacts.save(job))
    assert lines == [
        f"model: 4 files, 309.8 KiB in {case.model}, for the platform to save",
        f"output data: no files in {case.data}",
    ]
    assert sorted(case.base.rglob("*")) == before
    assert not case.target.exists()
    assert warnings_of(warned) == [
        f"{case.model} has 1 symbolic link: what collects or serves it may not follow them"
    ]


def test_a_request_without_a_destination_leaves_the_model_where_it_is(case: Case) -> None:
    fill(case.model, {"weights": b"1"})
    job = case.job(output=None)
    lines = artifacts.summary_lines(job, artifacts.save(job))
    assert lines[0] == f"model: 1 file, 1 B in {case.model}"


@pytest.mark.parametrize(
    ("compression", "names"),
    [
        ("GZIP", ["model-algo-2.tar.gz", "output-algo-2.tar.gz"]),
        ("NONE", ["data-algo-2", "model-algo-2"]),
    ],
)
def test_a_host_that_does_not_lead_saves_beside_the_leader(
    case: Case, compression: str, names: list[str]
) -> None:
    fill(case.model, {"weights": b"1"})
    fill(case.data, {"loss.csv": b"1"})
    worker = Cluster(current_host="algo-2", hosts=("algo-1", "algo-2"))
    artifacts.save(case.job(compression=compression, cluster=worker))
    assert sorted(os.listdir(case.out)) == names


def test_a_host_that_does_not_lead_need_not_have_a_model(
    case: Case, warned: pytest.LogCaptureFixture
) -> None:
    worker = Cluster(current_host="algo-2", hosts=("algo-1", "algo-2"))
    artifacts.save(case.job(cluster=worker, options=Options(require_model=True)))
    assert not case.target.exists()
    assert warnings_of(warned) == []


def test_what_is_left_out_is_logged_with_its_path_but_not_without_end(
    case: Case, warned: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    fill(case.model, {"weights": b"1"})
    for number in range(50):
        (case.model / f"dangling-{number:02}").symlink_to("nowhere")
    artifacts.save(case.job())
    lines = warnings_of(warned)
    assert lines[0] == f"{case.model}/dangling-00 is left out: the link to nowhere leads nowhere"
    assert lines[20:] == ["... and 30 more like these"]
    assert untarred(case.out / "model.tar.gz", tmp_path) == {"weights": b"1"}


def test_a_job_without_a_name_gets_one_of_the_time(case: Case) -> None:
    fill(case.model, {"weights": b"1"})
    artifacts.save(case.job(name=None))
    (name,) = os.listdir(case.target)
    assert re.fullmatch(r"sm-runtime-\d{4}(-\d\d){5}", name)
    assert os.listdir(case.target / name / "output") == ["model.tar.gz"]


ODD = "a b%c#d?é\udcff"


@pytest.mark.parametrize(
    "uri",
    [
        "file://{path}",
        "file://{path}/",
        "file://localhost{path}",
        "FILE://LocalHost{path}",
        "file:{path}",
        "file://{quoted}",
    ],
)
def test_file_uris_name_local_folders(uri: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    folder = tmp_path / ODD if "quoted" in uri else plain
    store = open_store(uri.format(path=plain, quoted=quote(os.fsencode(folder))), "job")
    with store.stream("model.tar.gz") as sink:
        sink.write(b"1")
    assert (folder / "job" / "model.tar.gz").read_bytes() == b"1"
    assert store.locate("model.tar.gz") == f"file://{quote(os.fsencode(folder))}/job/model.tar.gz"


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("file://host/x", "has the host 'host'; file:///path has three slashes"),
        ("file://data/out", "has the host 'data'; file:///path has three slashes"),
        ("file://", "names no absolute path"),
        ("file:relative", "names no absolute path"),
        ("file:///a%00b", "names no absolute path"),
        ("gs://bucket/prefix", "is no file:// or s3:// URI"),
        ("/data/out", "is no file:// or s3:// URI"),
    ],
)
def test_a_destination_that_cannot_be_used_is_refused_early(case: Case, uri: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        artifacts.check(case.job(uri=uri))
    (problem,) = caught.value.problems
    assert problem.startswith(f"OutputDataConfig.S3OutputPath: {uri!r} {why}")


@pytest.mark.parametrize(
    ("folder", "name"),
    [("model", "a-job"), ("model/deep", "a-job"), ("output/data", "a-job"), ("..", "ml")],
)
def test_a_destination_among_the_folders_to_save_is_refused(
    case: Case, folder: str, name: str
) -> None:
    job = case.job(uri=f"file://{case.base}/{folder}", name=name)
    with pytest.raises(ConfigError, match="must be apart from"):
        artifacts.check(job)


def test_an_error_of_the_sink_after_the_first_bytes_leaves_no_part(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    with pytest.raises(KeyboardInterrupt), store.stream("x") as sink:
        sink.write(b"half")
        assert os.listdir(tmp_path) == ["x.part"]
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_the_archive_is_a_single_member_that_python_reads_too(case: Case) -> None:
    fill(case.model, SAVED_MODEL)
    artifacts.save(case.job())
    with tarfile.open(case.out / "model.tar.gz") as tar:
        names = tar.getnames()
    assert names == [
        *("1", "1/saved_model.pb", "1/variables"),
        "1/variables/variables.data-00000-of-00001",
        "1/variables/variables.index",
    ]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with the bucket ``bucket``."""
    (tmp_path / "buckets" / "bucket").mkdir(parents=True)
    with serving(tmp_path / "buckets") as server:
        yield server


def reaching(server: Server) -> dict[str, str]:
    """Return the variables by which the server is reached."""
    return {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": server.url, "AWS_REGION": "us-east-1"}


def test_an_archive_is_sent_to_s3_while_it_is_made(
    case: Case, server: Server, tmp_path: Path
) -> None:
    fill(case.model, SAVED_MODEL | {"1/large": noise(20 * MIB)})
    fill(case.data, {"loss.csv": b"1,2"})
    saved = artifacts.save(case.job(uri="s3://bucket/some"), environ=reaching(server))
    out = server.folder / "bucket" / "some" / "a-job" / "output"
    assert untarred(out / "model.tar.gz", tmp_path) == files_of(case.model)
    assert untarred(out / "output.tar.gz", tmp_path) == {"loss.csv": b"1,2"}
    assert sorted(os.listdir(out)) == ["model.tar.gz", "output.tar.gz"]
    assert saved[0].destination == "s3://bucket/some/a-job/output/model.tar.gz"
    assert saved[0].stored_bytes == (out / "model.tar.gz").stat().st_size
    assert files_of(case.base) == {
        **{f"model/{name}": content for name, content in files_of(case.model).items()},
        "output/data/loss.csv": b"1,2",
    }


def test_without_compression_the_files_of_this_attempt_are_the_objects(
    case: Case, server: Server
) -> None:
    many = {f"many/{number:03}": b"%d" % number for number in range(100)}
    fill(case.model, SAVED_MODEL | many | {"large": noise(20 * MIB)})
    server.put("s3://bucket/a-job/output/model/stale", b"of an earlier attempt")
    server.put("s3://bucket/a-job/output/model-algo-2/other", b"of another host")
    job = case.job(uri="s3://bucket", compression="NONE")
    saved = artifacts.save(job, environ=reaching(server))
    out = server.folder / "bucket" / "a-job" / "output"
    assert files_of(out / "model") == files_of(case.model)
    assert files_of(out / "model-algo-2") == {"other": b"of another host"}
    assert (saved[0].files, saved[0].destination) == (104, "s3://bucket/a-job/output/model")


@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
def test_a_bucket_that_is_not_there_is_an_error_that_names_the_object(
    case: Case, server: Server, compression: str
) -> None:
    fill(case.model, {"weights": b"1"})
    job = case.job(uri="s3://absent/x", compression=compression)
    with pytest.raises(ArtifactError, match="cannot be saved to s3://absent/x/a-job/output/model"):
        artifacts.save(job, environ=reaching(server))


@pytest.mark.parametrize("compression", ["GZIP", "NONE"])
def test_a_file_that_cannot_be_packed_leaves_no_object(
    case: Case, server: Server, compression: str
) -> None:
    fill(case.model, {"a": noise(20 * MIB), "b": b"1"})
    (case.model / "b").unlink()
    (case.model / "b").symlink_to("/sys/kernel/uevent_seqnum")  # it has less than its size
    with pytest.raises(ArtifactError, match=r"the model is not saved: .*/model/b shrank"):
        artifacts.save(
            case.job(uri="s3://bucket", compression=compression), environ=reaching(server)
        )
    assert not (server.folder / "bucket" / "a-job" / "output" / "model.tar.gz").exists()


def test_s3_is_checked_without_a_request(case: Case) -> None:
    environ = {
        **CREDENTIALS,
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_REGION": "us-east-1",
    }
    artifacts.check(case.job(uri="s3://bucket/prefix"), environ)

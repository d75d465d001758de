"""Folders of a running job are kept in step with a place, a real one."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sm_runtime import sync
from sm_runtime.contract.load import redirected
from sm_runtime.job.errors import ArtifactError, DataError
from sm_runtime.job.model import Cluster, Job, Paths, Sync
from sm_runtime.output import artifacts
from sm_runtime.storage.files import LocalStore
from sm_runtime.sync import mirror
from sm_runtime.sync.folders import Syncs
from sm_runtime.sync.mirror import Folder, Mirror
from sm_runtime.sync.snapshot import being_written
from tests.harness import eventually
from tests.s3 import CREDENTIALS, serving

ALONE = Cluster(current_host="algo-1", hosts=("algo-1",))
SECOND = Cluster(current_host="algo-2", hosts=("algo-1", "algo-2"))
PATIENT = 60.0


def files_of(root: Path) -> dict[str, str]:
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            with suppress(FileNotFoundError):  # what is being written gets its name just now
                found[str(path.relative_to(root))] = path.read_text()
    return found


def fill(root: Path, **files: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        replace(root / name, text)
    return root


def replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text)
    beside.rename(path)


class Case:
    """A job with checkpoints in ``local``, synced with ``remote``."""

    def __init__(self, tmp_path: Path) -> None:
        self.base = tmp_path / "opt" / "ml"
        self.local = self.base / "checkpoints"
        self.remote = tmp_path / "remote"

    def job(self, **fields: Any) -> Job:
        checkpoints = Sync(local_path=str(self.local), uri=self.remote.as_uri())
        known: dict[str, Any] = {"cluster": ALONE, "managed": False, "name": "a-job"}
        return Job(paths=Paths(str(self.base)), **(known | {"checkpoints": checkpoints} | fields))

    def syncs(self, **fields: Any) -> Syncs:
        found = sync.open_syncs(self.job(**fields), {})
        assert found is not None
        return found

    @contextmanager
    def running(self, **fields: Any) -> Iterator[Syncs]:
        """Sync from restoring to the end; it must all be there."""
        syncs = self.syncs(**fields)
        syncs.restore()
        syncs.start()
        syncs.hurry()
        try:
            yield syncs
        finally:
            found = syncs.finish(PATIENT)
        assert [saved.failure for saved in found] == [None] * len(found)

    def arrives(self, **files: str) -> None:
        eventually(
            lambda: self.remote.is_dir() and files_of(self.remote) == files, "files", PATIENT
        )


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.INFO)
    before = set(threading.enumerate())
    yield caplog
    eventually(lambda: set(threading.enumerate()) <= before, "no thread is left", PATIENT)


def lines(caplog: pytest.LogCaptureFixture, level: str = "WARNING") -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == level]


def test_what_an_earlier_attempt_left_is_there_before_the_script(
    case: Case, logged: pytest.LogCaptureFixture
) -> None:
    fill(case.remote, checkpoint="2", **{"deep/er": "x", "ckpt-2.data": "22"})
    (case.remote / "half.sm-runtime.part").write_text("never completed")
    case.syncs().restore()
    assert files_of(case.local) == {"checkpoint": "2", "ckpt-2.data": "22", "deep/er": "x"}
    (line,) = lines(logged, "INFO")
    assert line.startswith(f"checkpoints: restored 3 files, 4 B from {case.remote.as_uri()}/ (")


def test_nothing_to_restore_is_fine(case: Case) -> None:
    case.syncs().restore()
    assert list(case.local.iterdir()) == []


def test_files_that_are_here_already_stay(case: Case, logged: pytest.LogCaptureFixture) -> None:
    fill(case.remote, a="remote", b="remote")
    fill(case.local, a="local")
    with case.running():
        assert files_of(case.local) == {"a": "local", "b": "remote"}
        case.arrives(a="local", b="remote")
    assert lines(logged) == [
        f"checkpoints: in {case.local} already, and left as they are: 1 of the files of"
        f" {case.remote.as_uri()}/"
    ]


def test_a_stop_while_restoring_is_an_error(case: Case) -> None:
    fill(case.remote, a="x")
    with pytest.raises(DataError):
        case.syncs().restore(stopped=lambda: True)
    assert files_of(case.local) == {}


def test_a_folder_that_cannot_be_made_is_an_error(case: Case) -> None:
    case.base.mkdir(parents=True)
    case.local.write_text("a file")
    with pytest.raises(DataError, match=r"checkpoints: .* cannot be made: File exists"):
        case.syncs().restore()


def test_changes_arrive_while_the_script_runs(case: Case) -> None:
    with case.running():
        fill(case.local, **{"ckpt-1.data": "1", "checkpoint": "1"})
        case.arrives(**{"ckpt-1.data": "1", "checkpoint": "1"})
        fill(case.local, **{"sub/ckpt-2.data": "2", "checkpoint": "2"})
        (case.local / "ckpt-1.data").unlink()
        case.arrives(**{"sub/ckpt-2.data": "2", "checkpoint": "2"})
    assert files_of(case.local) == files_of(case.remote)


def test_what_was_restored_is_not_sent_again_but_deleted_by_the_leader(case: Case) -> None:
    fill(case.remote, a="1", b="2")
    before = (case.remote / "a").stat().st_ino
    with case.running():
        (case.local / "b").unlink()
        case.arrives(a="1")
    assert (case.remote / "a").stat().st_ino == before


def test_a_host_that_does_not_lead_deletes_only_what_it_has_sent(case: Case) -> None:
    fill(case.remote, a="1")
    with case.running(cluster=SECOND):
        fill(case.local, b="2")
        case.arrives(a="1", b="2")
        (case.local / "a").unlink()
        (case.local / "b").unlink()
        case.arrives(a="1")


def test_a_folder_that_vanishes_deletes_nothing(case: Case) -> None:
    fill(case.remote, a="1")
    with case.running():
        case.local.rename(case.base / "elsewhere")
    assert files_of(case.remote) == {"a": "1"}


WRITER = """
import os, sys
file = open(sys.argv[1], "w")
file.write("half")
file.flush()
print("ready", flush=True)
sys.stdin.readline()
file.write(" and half")
"""


def test_a_file_is_sent_when_it_is_closed(case: Case) -> None:
    with (
        case.running(),
        subprocess.Popen(
            (sys.executable, "-c", WRITER, case.local / "model.h5"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        fill(case.local, other="x")
        case.arrives(other="x")
        process.stdin.write(b"\n")
        process.stdin.close()
        case.arrives(**{"model.h5": "half and half", "other": "x"})


@pytest.mark.parametrize(
    "name",
    ["additional_chat_templates/a", "sweep_temperature/b", "model_temporal/c", "lr_temp_beta_1/d"],
)
def test_a_word_that_begins_as_temporary_does_is_a_name_like_any(case: Case, name: str) -> None:
    with case.running():
        replace(case.local / name, "x")
        case.arrives(**{name: "x"})
    again = Case(case.remote.parent / "again")
    again.remote = case.remote
    again.syncs().restore()
    assert files_of(again.local) == {name: "x"}


def test_when_nothing_writes_any_more_everything_is_sent_and_comes_back(case: Case) -> None:
    with case.running():
        fill(case.local, a="1")
        (case.local / "b.tmp").write_text("2")
        (case.local / "tmp").mkdir()
        (case.local / "tmp" / "c").write_text("3")
        case.arrives(a="1")
    everything = {"a": "1", "b.tmp": "2", "tmp/c": "3"}
    assert files_of(case.remote) == everything
    again = Case(case.remote.parent / "again")
    again.remote = case.remote
    again.syncs().restore()
    assert files_of(again.local) == everything


def test_a_file_that_is_rewritten_with_the_same_size_and_time_is_sent(case: Case) -> None:
    with case.running():
        fill(case.local, x="old")
        case.arrives(x="old")
        status = (case.local / "x").stat()
        (case.local / "x").write_text("new")
        os.utime(case.local / "x", ns=(status.st_atime_ns, status.st_mtime_ns))
        case.arrives(x="new")


MAPS = """
import mmap, os, sys
with open(sys.argv[1], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
for name in os.listdir("/proc/self/fd"):  # mmap keeps one open; libraries close it
    if int(name) > 2:
        try: os.close(int(name))
        except OSError: pass
for line in sys.stdin:
    memory[:3] = line.strip().encode()
    print("written", flush=True)
os._exit(0)
"""


@contextmanager
def mapping(path: Path) -> Iterator[Any]:
    """Yield a process that writes the lines it is sent into a file, through its memory."""
    with subprocess.Popen(
        (sys.executable, "-c", MAPS, str(path)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout

        def write(text: str) -> None:
            process.stdin.write(text.encode() + b"\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            assert process.stdout.readline() == b"written\n"  # type: ignore[union-attr]

        yield write
        process.stdin.close()


def test_what_is_written_through_a_mapping_whose_file_is_closed_arrives(case: Case) -> None:
    fill(case.local, x="old")
    with case.running():
        case.arrives(x="old")
        with mapping(case.local / "x") as write:
            write("one")
            fill(case.local, beside="1")
            case.arrives(x="old", beside="1")  # while it is mapped it is being written
            write("two")
        case.arrives(x="two", beside="1")


def test_where_mappings_change_no_times_the_end_sends_what_was_mapped(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "MAPS_SECONDS", 0.5)
    case.local.mkdir(parents=True)
    subprocess.run(("mount", "-t", "tmpfs", "tmpfs", case.local), check=True)
    try:
        fill(case.local, x="old")
        with case.running():
            case.arrives(x="old")
            with mapping(case.local / "x") as write:
                write("one")
                time.sleep(2)  # from one look at the mappings to the next
                write("two")
        assert files_of(case.remote) == {"x": "two"}
    finally:
        subprocess.run(("umount", "-l", case.local), check=True)


def test_a_name_as_long_as_a_name_may_be_arrives(case: Case) -> None:
    name = "x" * 255
    with case.running():
        fill_one(case.local / name, "1")
        case.arrives(**{name: "1"})


def fill_one(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_logs_are_sent_while_they_grow(case: Case) -> None:
    logs = case.base / "output" / "tensorboard"
    tensorboard = Sync(local_path=str(logs), uri=case.remote.as_uri())
    remote = case.remote / "a-job" / "tensorboard-output"
    name = "events.out.tfevents.1"
    with (
        case.running(checkpoints=None, tensorboard=tensorboard),
        open(logs / name, "w") as file,
    ):
        file.write("first")
        file.flush()
        eventually(
            lambda: remote.is_dir() and files_of(remote) == {name: "first"}, "an event", PATIENT
        )
        file.write(" second")
    assert files_of(remote) == {"events.out.tfevents.1": "first second"}


def test_a_log_among_checkpoints_holds_nothing_up(case: Case) -> None:
    with case.running(), open(case.local / "events.out.tfevents.1", "w") as file:
        file.write("x")
        file.flush()
        fill(case.local, **{"ckpt-1.data": "1", "checkpoint": "1"})
        case.arrives(**{"ckpt-1.data": "1", "checkpoint": "1", "events.out.tfevents.1": "x"})


def test_intermediate_output_and_model_dir_are_synced_with_s3(case: Case, tmp_path: Path) -> None:
    with serving(tmp_path / "buckets") as server:
        server.put("s3://bucket/model/checkpoint", b"1")
        job = redirected(
            case.job(
                checkpoints=None,
                region="us-east-1",
                hyperparameters={"model_dir": "s3://bucket/model"},
                reserved={"sagemaker_s3_output": "s3://bucket/rl"},
            ),
            bool,
        )
        environ = {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": server.url}
        syncs = sync.open_syncs(job, environ)
        assert syncs is not None
        syncs.restore()
        model_dir = case.base / "shared" / "model"
        assert job.hyperparameters["model_dir"] == str(model_dir)
        assert files_of(model_dir) == {"checkpoint": "1"}
        syncs.start()
        fill(model_dir, **{"ckpt-2.data": "2", "checkpoint": "2"})
        fill(case.base / "output" / "intermediate", **{"deep/plot": "x"})
        saved = syncs.finish(PATIENT)
        assert [(one.what, one.files, one.failure) for one in saved] == [
            ("model_dir", 2, None),
            ("intermediate output", 1, None),
        ]
        assert files_of(server.folder / "bucket") == {
            "model/checkpoint": "2",
            "model/ckpt-2.data": "2",
            "rl/a-job/output/intermediate/deep/plot": "x",
        }


class Faulty(LocalStore):
    """A store that fails where a test wants it to, and notes what happens in which order."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.failing: set[str] = set()
        self.seconds = 0.0
        self.done: list[str] = []
        self.pause = threading.Event()

    def put(self, key: str, source: int, size_bytes: int) -> None:
        self._act(f"put {key}")
        self.pause.wait(self.seconds)
        super().put(key, source, size_bytes)
        self.done.append(f"put {key}")

    def delete(self, key: str) -> None:
        self._act(f"delete {key}")
        super().delete(key)
        self.done.append(f"delete {key}")

    def _act(self, what: str) -> None:
        if self.failing & {what, "*"}:
            raise OSError(errno.EIO, "the store is out of order")


@contextmanager
def mirroring(
    case: Case, store: LocalStore, *, patience: float = PATIENT, **fields: Any
) -> Iterator[Mirror]:
    case.local.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = {
        "what": "checkpoints",
        "path": str(case.local),
        "uri": case.remote.as_uri(),
    }
    rules: dict[str, Any] = {"setting": "x", "deletes": True, "required": True}
    mirror = Mirror(Folder(**(known | rules | fields)), store, patience=patience)
    mirror.start()
    mirror.hurry()
    yield mirror
    mirror.end(float("inf"))
    mirror.wait(PATIENT)
    assert mirror.ended


def test_data_goes_before_pointers_and_deletions_go_last(case: Case) -> None:
    store = Faulty(case.remote)
    with mirroring(case, store):
        fill(case.local, **{"ckpt-1.data": "1", "ckpt-1.index": "1", "checkpoint": "1"})
        case.arrives(**{"ckpt-1.data": "1", "ckpt-1.index": "1", "checkpoint": "1"})
        store.done.clear()
        fill(case.local, **{"ckpt-2.data": "2", "ckpt-2.index": "2"})
        fill(case.local, checkpoint="2")
        (case.local / "ckpt-1.data").unlink()
        (case.local / "ckpt-1.index").unlink()
        case.arrives(**{"ckpt-2.data": "2", "ckpt-2.index": "2", "checkpoint": "2"})
    kinds = [("data" in x, "index" in x, "put checkpoint" in x, "delete" in x) for x in store.done]
    order = [kind[3] * 3 or kind[2] * 2 or kind[1] * 1 for kind in kinds]
    assert order == sorted(order)


def test_a_pointer_waits_for_data_that_could_not_be_sent_and_nothing_is_deleted(
    case: Case, logged: pytest.LogCaptureFixture
) -> None:
    store = Faulty(case.remote)
    with mirroring(case, store) as mirror:
        fill(case.local, **{"ckpt-1.data": "1", "checkpoint": "1"})
        case.arrives(**{"ckpt-1.data": "1", "checkpoint": "1"})
        store.failing.add("put ckpt-2.data")
        fill(case.local, **{"ckpt-2.data": "2", "other": "x", "checkpoint": "2"})
        (case.local / "ckpt-1.data").unlink()
        case.arrives(**{"ckpt-1.data": "1", "checkpoint": "1", "other": "x"})
        eventually(lambda: lines(logged), "a warning", PATIENT)
        assert "1 of 3 files" not in str(mirror.result().failure)
        assert "2 of 3 files are not in file:///" in str(mirror.result().failure)
        assert "the store is out of order" in str(mirror.result().failure)
        store.failing.clear()
        case.arrives(**{"ckpt-2.data": "2", "checkpoint": "2", "other": "x"})
        eventually(lambda: "again" in " ".join(lines(logged, "INFO")), "a good word", PATIENT)
    (line,) = lines(logged)
    assert line.startswith("checkpoints: ckpt-2.data cannot be synced with file:///")
    assert mirror.result().failure is None


def test_a_deletion_that_fails_is_tried_again(case: Case) -> None:
    store = Faulty(case.remote)
    with mirroring(case, store):
        fill(case.local, a="1", b="2")
        case.arrives(a="1", b="2")
        store.failing.add("delete a")
        (case.local / "a").unlink()
        fill(case.local, c="3")
        case.arrives(a="1", b="2", c="3")
        store.failing.clear()
        case.arrives(b="2", c="3")


def test_a_checkpoint_that_is_deleted_while_it_is_sent_arrives_with_its_pointer(case: Case) -> None:
    store = Faulty(case.remote)
    store.seconds = PATIENT
    with mirroring(case, store):
        fill(case.local, **{"ckpt-1.data": "1", "checkpoint": "1"})
        eventually(lambda: _pinned(case.local / "ckpt-1.data"), "it is being sent", PATIENT)
        fill(case.local, **{"ckpt-2.data": "2"})
        fill(case.local, checkpoint="2")
        (case.local / "ckpt-1.data").unlink()
        store.seconds = 0.0
        store.pause.set()
        case.arrives(**{"ckpt-2.data": "2", "checkpoint": "2"})
    assert store.done[0] == "put ckpt-1.data"


def _pinned(path: Path) -> bool:
    found = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{number}") == str(path)
        except OSError:
            continue
    return found > 1  # the snapshot's, and the one that is sent


def test_at_the_end_what_cannot_be_sent_is_a_failure_of_the_job(case: Case) -> None:
    store = Faulty(case.remote)
    store.failing.add("*")
    with mirroring(case, store, patience=0.5) as mirror:
        fill(case.local, a="1")
    saved = mirror.result()
    assert saved.failure is not None
    assert saved.failure.startswith("checkpoints: 1 of 1 files are not in file:///")
    assert saved.failure.endswith("a for one: the store is out of order")
    with pytest.raises(ArtifactError, match="the store is out of order"):
        artifacts.save(case.job(), rest=lambda: (saved,))


def test_logs_that_cannot_be_sent_are_a_warning(
    case: Case, logged: pytest.LogCaptureFixture
) -> None:
    store = Faulty(case.remote)
    store.failing.add("*")
    logs: dict[str, Any] = {"what": "TensorBoard logs", "required": False, "deletes": False}
    with mirroring(case, store, patience=0.5, grows=True, **logs) as mirror:
        fill(case.local, a="1")
    saved = mirror.result()
    assert saved.failure is None
    assert saved.warnings[0].startswith("TensorBoard logs: 1 of 1 files are not in file:///")


def test_the_end_waits_no_longer_than_it_may(case: Case) -> None:
    store = Faulty(case.remote)
    store.seconds = 2 * PATIENT
    case.local.mkdir(parents=True)
    syncs = Syncs(
        case.job(),
        {},
        {Folder(what="checkpoints", path=str(case.local), uri=case.remote.as_uri(),
                setting="x", required=True): store},
    )  # fmt: skip
    syncs.start()
    fill(case.local, a="1")
    began = time.monotonic()
    (saved,) = syncs.finish(0.5)
    assert time.monotonic() - began < PATIENT
    assert "a for one: no time was left" in str(saved.failure)
    assert files_of(case.local) == {"a": "1"}
    store.pause.set()


@pytest.mark.parametrize("before", [0, 2], ids=["before", "meanwhile"])
def test_what_is_not_sent_when_a_stop_has_to_be_over_is_told(case: Case, before: int) -> None:
    store = Faulty(case.remote)
    store.seconds = 2 * PATIENT
    case.local.mkdir(parents=True)
    folder = Folder(what="x", path=str(case.local), uri=case.remote.as_uri(), setting="x")
    syncs = Syncs(case.job(), {}, {folder: store})
    syncs.start()
    fill(case.local, a="1")
    answers = iter([float("inf")] * before)
    deadline = time.monotonic() + 0.3
    (saved,) = syncs.finish(until=lambda: next(answers, deadline))
    assert saved.warnings
    store.pause.set()


def test_a_file_that_cannot_be_read_holds_nothing_up(case: Case) -> None:
    script = f"""
import os, shutil, sys, urllib.parse
from sm_runtime.storage.files import LocalStore
from sm_runtime.sync.mirror import Mirror
from sm_runtime.sync.mirror import Folder
from sm_runtime.sync.mirror import MAPS_SECONDS
os.setuid(12345)
folder = Folder(what="x", path={str(case.local)!r}, uri="file:///x", setting="x", required=True)
mirror = Mirror(folder, LocalStore({str(case.remote)!r}))
mirror.start()
mirror.end(float("inf"))
mirror.wait(60)
print(mirror.result().failure)
"""
    fill(case.local, a="1", secret="2", checkpoint="1")
    (case.local / "secret").chmod(0)
    case.remote.mkdir()
    case.remote.chmod(0o777)
    for folder in (case.local, *list(case.local.parents)[:-2]):
        folder.chmod(0o755)
    done = subprocess.run(
        (sys.executable, "-c", script), capture_output=True, text=True, timeout=PATIENT
    )
    assert done.stderr.splitlines() == [
        "x: secret cannot be synced with file:///x/, tried again: Permission denied"
    ]
    assert "secret for one: Permission denied" in done.stdout
    assert files_of(case.remote) == {"a": "1", "checkpoint": "1"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder), check=True)
    try:
        yield folder
    finally:
        subprocess.run(("umount", folder), check=True)


def test_a_full_disk_there_leaves_nothing_half_written(case: Case, small_disk: Path) -> None:
    with mirroring(case, LocalStore(str(small_disk)), patience=0.5) as mirror:
        fill(case.local, small="x", **{"big.data": "y" * (2 << 20)})
    assert "big.data for one: No space left on device" in str(mirror.result().failure)
    assert files_of(small_disk) == {"small": "x"}


def test_a_full_disk_here_is_said_before_anything_is_fetched(case: Case, small_disk: Path) -> None:
    fill(case.remote, big="y" * (2 << 20))
    case.local = small_disk / "checkpoints"
    with pytest.raises(DataError, match=r"has 2097152 bytes, .* has room for"):
        case.syncs().restore()
    assert list(case.local.iterdir()) == []


def test_a_job_without_syncs_imports_nothing() -> None:
    script = (
        "import sys\nfrom sm_runtime import sync\nfrom sm_runtime.job.model import *\n"
        "cluster = Cluster(current_host='a', hosts=('a',))\n"
        "assert sync.open_syncs(Job(paths=Paths(), cluster=cluster), {}) is None\n"
        "assert not [n for n in sys.modules if n.startswith(('sm_runtime.sync.',"
        " 'sm_runtime.storage', 'threading'))]\n"
    )
    subprocess.run((sys.executable, "-c", script), check=True)


def test_only_files_that_another_process_writes_are_being_written(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = (
        "import sys\n"
        f"w = open({str(tmp_path / 'written')!r}, 'w')\n"
        f"r = open({str(tmp_path / 'read')!r})\n"
        "import mmap\n"
        f"with open({str(tmp_path / 'mapped')!r}, 'r+b') as m: m = mmap.mmap(m.fileno(), 0)\n"
        f"with open({str(tmp_path / 'private')!r}, 'r+b') as file:\n"
        "    p = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)\n"
        "import os\nfor name in os.listdir('/proc/self/fd'):\n"
        "    if int(name) > 2 and int(name) not in (w.fileno(), r.fileno()):\n"
        "        try: os.close(int(name))\n"
        "        except OSError: pass\n"
        "print('ready', flush=True)\nsys.stdin.read()\n"
    )
    identities = {}
    for name in ("written", "read", "mapped", "private", "closed"):
        (tmp_path / name).write_text(name)
        status = (tmp_path / name).stat()
        identities[name] = (status.st_dev, status.st_ino)
    with subprocess.Popen(
        (sys.executable, "-c", script), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        found = being_written(set(identities.values()))
        assert process.stdin is not None
        process.stdin.close()
    assert (found.opened, found.mapped) == ({identities["written"]}, {identities["mapped"]})

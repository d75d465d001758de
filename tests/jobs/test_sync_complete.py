"""A place holds all that a script left in a synced folder, under any name, as it was last."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.buckets import files, objects, request
from tests.harness import Base, eventually
from tests.s3 import Server, serving

PATIENT = 60.0
BAD = os.fsdecode(b"\xff\xfe.bin")

# What the scripts below begin with; `until` waits for a file.
PRELUDE = """
import ctypes, mmap, os, shutil, sys, threading
folder = os.environ["FOLDER"]
def write(name, text):
    os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
    with open(f"{folder}/{name}", "w") as file:
        file.write(text)
def until(path):
    while not os.path.exists(path):
        threading.Event().wait(0.02)
"""


class Case:
    """A job whose checkpoints are in ``local``, and in step with the folder ``remote``."""

    def __init__(self, tmp_path: Path) -> None:
        self.remote = tmp_path / "remote"
        self._root, self._attempts = tmp_path, 0
        self.attempt()

    def attempt(self) -> None:
        """Go on in a container of its own."""
        self._attempts += 1
        self.base = Base(self._root / f"{self._attempts}" / "opt" / "ml")
        self.local = self.base.path("checkpoints")
        self.base.environ["FOLDER"] = str(self.local)
        place = {"S3Uri": self.remote.as_uri(), "LocalPath": str(self.local)}
        self.base.write("input/config/job.json", {"CheckpointConfig": place})

    def script(self, text: str) -> Base:
        return self.base.script(PRELUDE + text)

    def arrives(self, **wanted: bytes) -> None:
        eventually(lambda: self.held().items() >= wanted.items(), f"{sorted(wanted)}", PATIENT)

    def held(self) -> dict[str, bytes]:
        return files(self.remote) if self.remote.is_dir() else {}


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


# --- names

ORDINARY = {
    "additional_chat_templates/tool_use.jinja": b"1",
    "chat_template.json": b"2",
    "prompt_templates/x": b"3",
    "sweep_temperature/x": b"4",
    "model_temporal/x": b"5",
    "email_templates/x": b"6",
    "lr_temp_beta_1/x": b"7",
}
TEMPORARY = {
    "x.tmp": b"1",
    "tmp/checkpoint": b"2",
    "ckpt-1_temp/part-00000-of-00001.index": b"3",
    "5.orbax-checkpoint-tmp-7/x": b"4",
    "x.part": b"5",
}


def writing(names: dict[str, bytes]) -> str:
    return "".join(f"write({name!r}, {text.decode()!r})\n" for name, text in names.items())


def test_names_that_only_begin_like_temporary_ones_are_sent_at_once_and_restored(
    case: Case,
) -> None:
    running = case.script(writing(ORDINARY) + "until(folder + '/../go')").start()
    case.arrives(**ORDINARY)
    assert running.process.poll() is None
    case.base.write("go", "")
    assert running.wait().status == 0
    case.attempt()
    assert case.script("").run().status == 0
    assert files(case.local) == ORDINARY


def test_what_is_called_temporary_is_sent_when_nothing_writes_any_more(case: Case) -> None:
    """It is a part of what the script left: it is restored, and deleted where it is deleted."""
    script = writing(TEMPORARY) + "write('step', '1')\nuntil(folder + '/../go')"
    running = case.script(script).start()
    case.arrives(step=b"1")
    assert case.held() == {"step": b"1"}
    case.base.write("go", "")
    result = running.wait()
    assert result.status == 0, result.log
    assert case.held() == {"step": b"1", **TEMPORARY}
    case.attempt()
    drop = (
        "print(sorted(os.listdir(folder)))\n"
        "os.unlink(folder + '/x.tmp')\nshutil.rmtree(folder + '/tmp')\n"
    )
    result = case.script(drop).run()
    assert result.status == 0, result.log
    assert b"'tmp'" in result.out and b"'x.tmp'" in result.out
    left = {
        name: text for name, text in TEMPORARY.items() if name not in ("x.tmp", "tmp/checkpoint")
    }
    assert case.held() == {"step": b"1", **left}


def test_logs_and_intermediate_output_are_sent_under_such_names_too(
    case: Case, tmp_path: Path
) -> None:
    logs, intermediate = case.base.path("tb"), case.base.path("output/intermediate")
    buckets = tmp_path / "buckets"
    (buckets / "bucket").mkdir(parents=True)
    names = {"lr_temp_beta_1/events.out.tfevents.1": b"e", "prompt_templates/x": b"p"}
    with serving(buckets) as server:
        place = {"S3OutputPath": "s3://bucket/tb", "LocalPath": str(logs)}
        rl = {"sagemaker_s3_output": '"s3://bucket/rl"'}
        request(case.base, server.url, TensorBoardOutputConfig=place, HyperParameters=rl)
        script = "".join(
            f"folder = {str(local)!r}\n{writing(names)}write('last.tmp', 't')\n"
            for local in (logs, intermediate)
        )
        running = case.script(script + f"until({str(case.base.path('go'))!r})").start()
        keys = ("tb/a-job/tensorboard-output", "rl/a-job/output/intermediate")
        sent = {f"{key}/{name}": text for key in keys for name, text in names.items()}
        eventually(lambda: objects(server) == sent, "all but what is temporary", PATIENT)
        case.base.write("go", "")
        result = running.wait()
        assert result.status == 0, result.log
        assert objects(server) == {**sent, **{f"{key}/last.tmp": b"t" for key in keys}}


def test_what_a_killed_attempt_of_the_runtime_left_is_no_checkpoint(case: Case) -> None:
    """Neither there, where it was being sent, nor here, where it was being restored."""
    half = "ckpt-1.sm-runtime.part"
    case.remote.mkdir()
    (case.remote / half).write_bytes(b"half")
    case.local.mkdir(parents=True)
    (case.local / f"other-{half}").write_bytes(b"half")
    result = case.script(f"write('step', '1')\nprint({half!r} in os.listdir(folder))").run()
    assert (result.status, result.out) == (0, b"False\n"), result.log
    assert case.held() == {"step": b"1", half: b"half"}


LONG = ["a" * 240, "b" * 250, "c" * 255, "ü" * 125, "deep/" + "d" * 254]


def test_names_as_long_as_a_file_system_allows_are_sent_and_restored(case: Case) -> None:
    wanted = {name: b"%d" % number for number, name in enumerate(LONG)}
    result = case.script(writing(wanted)).run()
    assert result.status == 0, result.log
    assert case.held() == wanted
    case.attempt()
    assert case.script("").run().status == 0
    assert files(case.local) == wanted


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    with serving(tmp_path / "buckets") as server:
        yield server


SETTINGS: dict[str, dict[str, Any]] = {
    "checkpoints": {"CheckpointConfig": {"S3Uri": "s3://bucket/there", "LocalPath": "{folder}"}},
    "model_dir": {"HyperParameters": {"model_dir": '"s3://bucket/there"'}},
    "TensorBoard logs": {
        "TensorBoardOutputConfig": {"S3OutputPath": "s3://bucket/tb", "LocalPath": "{folder}"}
    },
    "intermediate output": {"HyperParameters": {"sagemaker_s3_output": '"s3://bucket/rl"'}},
}
REQUIRED = ("checkpoints", "model_dir")


@pytest.mark.parametrize("what", SETTINGS)
def test_a_folder_that_a_bucket_cannot_hold_fails_the_job_unless_it_is_of_logs(
    base: Base, server: Server, what: str
) -> None:
    """As soon as it is seen there is a warning; the other files are there."""
    local = {
        "model_dir": base.path("shared/model"),
        "intermediate output": base.path("output/intermediate"),
    }.get(what, base.path("synced"))
    base.environ["FOLDER"] = str(local)
    parts = {
        key: {k: v.replace("{folder}", str(local)) for k, v in part.items()}
        for key, part in SETTINGS[what].items()
    }
    request(base, server.url, **parts)
    script = f"open(folder.encode() + b'/' + {os.fsencode(BAD)!r}, 'w').write('x')\n"
    script += "write('step', '1')\n"
    running = base.script(PRELUDE + script + f"until({str(base.path('go'))!r})").start()
    refused = f"{what}: {BAD!a} cannot be synced with s3://bucket/"
    eventually(lambda: refused.encode() in running.err, "a warning", PATIENT)
    base.write("go", "")
    result = running.wait()
    why = "object storage cannot hold its name"
    assert result.status == (1 if what in REQUIRED else 0), result.log
    assert f"{what}: 1 of 2 files are not in s3://bucket/" in result.log
    assert f"{BAD!a} for one: {why}" in result.log
    if what in REQUIRED:
        assert base.failure().startswith(f"ArtifactError: {what}: 1 of 2 files are not in")
    assert b"1" in objects(server).values()


def test_a_folder_can_hold_names_that_are_not_utf_8(case: Case) -> None:
    script = f"open(folder.encode() + b'/' + {os.fsencode(BAD)!r}, 'w').write('x')\n"
    result = case.script(script).run()
    assert result.status == 0, result.log
    assert case.held() == {BAD: b"x"}
    case.attempt()
    assert case.script("").run().status == 0
    assert files(case.local) == {BAD: b"x"}


def test_what_is_no_file_is_named(case: Case) -> None:
    script = "os.mkfifo(folder + '/fifo')\nos.symlink('nowhere', folder + '/link')\nwrite('a', '1')"
    result = case.script(script).run()
    assert result.status == 0, result.log
    assert f"checkpoints: {case.local}/fifo is left out: it is a FIFO" in result.log
    assert f"checkpoints: {case.local}/link is left out: the link to nowhere leads" in result.log
    assert case.held() == {"a": b"1"}


# --- content


@pytest.mark.parametrize("moment", ["while it runs", "at its end"])
def test_a_file_that_is_rewritten_with_its_size_and_time_is_sent_again(
    case: Case, moment: str
) -> None:
    script = f"""
write("weights", "old")
os.utime(folder + "/weights", (1000, 1000))
until({str(case.remote / "weights")!r})
with open(folder + "/weights", "r+") as file:
    file.write("new")
os.utime(folder + "/weights", (1000, 1000))
"""
    if moment == "while it runs":
        running = case.script(script + "until(folder + '/../go')").start()
        case.arrives(weights=b"new")
        case.base.write("go", "")
        result = running.wait()
    else:
        result = case.script(script).run()
    assert result.status == 0, result.log
    assert case.held() == {"weights": b"new"}


# A mapping without a descriptor, which Python's own keeps. The second write into a page changes no
# time of the file.
MAPPED = """
libc = ctypes.CDLL(None)
libc.mmap.restype, libc.munmap.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_size_t)
write("weights", "-" * 4096)
file = os.open(folder + "/weights", os.O_RDWR)
both = mmap.PROT_READ | mmap.PROT_WRITE
address = libc.mmap(None, ctypes.c_size_t(4096), both, mmap.MAP_SHARED, file, ctypes.c_long(0))
os.close(file)
weights = (ctypes.c_char * 4096).from_address(address)
weights[:3] = b"one"
write("step", "1")
"""


def test_a_file_that_is_written_through_memory_is_sent_when_it_is_not_mapped_any_more(
    case: Case,
) -> None:
    script = f"""
until({str(case.remote / "step")!r})
print("ready", flush=True)
until(folder + "/../go")
weights[:3] = b"two"
libc.munmap(address, 4096)
until(folder + "/../on")
"""
    running = case.script(MAPPED + script).start()
    running.ready()
    assert "weights" not in case.held()
    case.base.write("go", "")
    case.arrives(weights=b"two" + b"-" * 4093)
    case.base.write("on", "")
    result = running.wait()
    assert result.status == 0, result.log


def test_a_file_that_is_mapped_until_the_end_is_there_as_it_was_then(case: Case) -> None:
    script = f"""
until({str(case.remote / "step")!r})
weights[:3] = b"two"
"""
    result = case.script(MAPPED + script).run()
    assert result.status == 0, result.log
    assert case.held() == {"weights": b"two" + b"-" * 4093, "step": b"1"}

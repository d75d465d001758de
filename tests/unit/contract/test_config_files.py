"""The files that scripts open are there in a self-managed job, and no job mistakes them later."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from sm_runtime.job.model import Command
from tests import dry
from tests.harness import Base

GROUP = {"instance_group_name": "homogeneousCluster", "instance_type": "ml.r", "hosts": ["h"]}


def request(base: Base, **more: Any) -> dict[str, Any]:
    base.write("input/data/train/x", "1")
    return {
        "TrainingJobName": "j",
        "HyperParameters": {"lr": "0.1", "text": '"a b"', "sagemaker_container_log_level": "20"},
        "InputDataConfig": [{"ChannelName": "train", "ContentType": "text/csv"}],
        "ResourceConfig": {"InstanceType": "ml.r", "InstanceCount": 1},
        **more,
    }


def hosts(name: str = "h") -> dict[str, str]:
    return {"SM_RUNTIME_HOSTS": "h", "SM_RUNTIME_CURRENT_HOST": name}


def seen(base: Base, job: Any = None, **environ: str) -> dict[str, Any]:
    """Run a job; return what its script sees that opens the files."""
    found: dict[str, Any] = {}

    def script(command: Command) -> None:
        for path in Path(command.env["SM_INPUT_CONFIG_DIR"]).glob("*.json"):
            found[path.stem] = json.loads(path.read_text())
        found["SM_HPS"] = json.loads(command.env["SM_HPS"])

    if job is not None:
        base.write("input/config/job.json", job)
    result = dry.train(base.script(""), script, **environ)
    assert result.status == 0, result.log
    found.pop("job", None)
    return found


def config(base: Base, name: str) -> Any:
    return json.loads(base.path(f"input/config/{name}.json").read_text())


def mode(base: Base, name: str) -> int:
    return stat.S_IMODE(base.path(f"input/config/{name}").stat().st_mode)


def ours(base: Base) -> list[str]:
    """Return what the runtime has left in the folder."""
    return sorted(name for name in os.listdir(base.path("input/config")) if name != "job.json")


def test_all_three_are_there_for_a_request_that_says_nothing(base: Base) -> None:
    found = seen(base, {})
    assert (found["hyperparameters"], found["inputdataconfig"]) == ({}, {})
    assert found["resourceconfig"]["hosts"] == [os.uname().nodename]
    assert "checkpointconfig" not in found


def test_hyperparameters_are_texts_as_on_the_platform(base: Base) -> None:
    values = {"n": 5, "f": 0.5, "b": True, "x": None, "l": [1, "a"], "o": {"k": 1}, "s": "1e3"}
    found = seen(base, {"HyperParameters": values})["hyperparameters"]
    texts = {"n": "5", "f": "0.5", "b": "true", "x": "null", "l": '[1,"a"]', "o": '{"k":1}'}
    assert found == {**texts, "s": "1e3"}


def test_hyperparameters_are_in_the_order_of_the_request(base: Base) -> None:
    """Programs that make arguments of the file, as the SDK's drivers do, keep its order."""
    values = {"z": "1", "a": "2", "m": "3"}
    assert list(seen(base, {"HyperParameters": values})["hyperparameters"]) == list(values)


def test_a_job_that_checkpoints_has_a_file_about_that(base: Base, tmp_path: Path) -> None:
    uri = (tmp_path / "remote").as_uri()
    found = seen(base, request(base, CheckpointConfig={"S3Uri": uri}))
    local = str(base.path("checkpoints"))
    assert found["checkpointconfig"] == {"LocalPath": local, "S3Uri": uri}
    assert "checkpointconfig" not in seen(base, request(base))


def test_the_folder_is_made_for_a_request_that_is_no_file(base: Base) -> None:
    found = seen(base, SM_RUNTIME_JOB=json.dumps({"HyperParameters": {"a": "1"}}))
    assert found["hyperparameters"] == {"a": "1"}
    assert mode(base, "hyperparameters.json") == 0o600


def test_what_is_there_wins_key_by_key(base: Base) -> None:
    base.write("input/config/hyperparameters.json", {"lr": "9", "own": 5})
    base.write("input/config/inputdataconfig.json", {"train": {"ContentType": "own"}, "more": {}})
    base.write("input/config/resourceconfig.json", {"network_interface_name": "ib0"})
    base.write("input/data/more/x", "1")
    found = seen(base, request(base))
    assert found["hyperparameters"] == {
        "lr": "9",
        "own": 5,
        "text": '"a b"',
        "sagemaker_container_log_level": "20",
    }
    assert found["inputdataconfig"] == {
        "train": {
            "TrainingInputMode": "File",
            "S3DistributionType": "FullyReplicated",
            "RecordWrapperType": "None",
            "ContentType": "own",
        },
        "more": {},
    }
    assert found["resourceconfig"] == {
        "network_interface_name": "ib0",
        "hosts": [os.uname().nodename],
        "current_host": os.uname().nodename,
        "current_instance_type": "ml.r",
    }


def test_what_lacks_nothing_is_not_touched(base: Base) -> None:
    complete = {
        "hyperparameters": '{"a" :  "1"}',
        "inputdataconfig": "{ }",
        "resourceconfig": '{"hosts": ["h"],\n"current_host": "h"}',
    }
    for name, text in complete.items():
        base.write(f"input/config/{name}.json", text)
    before = {name: base.path(f"input/config/{name}.json").stat() for name in complete}
    seen(base, {"HyperParameters": {"a": "2"}})
    for name, text in complete.items():
        path = base.path(f"input/config/{name}.json")
        assert path.read_text() == text
        assert path.stat().st_ino == before[name].st_ino
    assert ours(base) == sorted(f"{name}.json" for name in complete)


def test_a_changed_request_counts_on_the_same_folder(base: Base) -> None:
    first = seen(base, request(base, HyperParameters={"a": "1", "b": "1"}))
    assert first["SM_HPS"] == {"a": 1, "b": 1}
    second = seen(base, {"HyperParameters": {"b": "2", "c": "2"}})
    assert second["SM_HPS"] == {"b": 2, "c": 2}
    assert second["hyperparameters"] == {"b": "2", "c": "2"}
    assert second["inputdataconfig"] == {}
    assert second["resourceconfig"]["current_instance_type"] == "local"


def test_what_the_user_had_still_wins_over_a_changed_request(base: Base) -> None:
    base.write("input/config/hyperparameters.json", {"b": "user"})
    assert seen(base, {"HyperParameters": {"a": "1", "b": "1"}})["SM_HPS"] == {"a": 1, "b": "user"}
    assert seen(base, {"HyperParameters": {"b": "2", "c": "2"}})["SM_HPS"] == {"b": "user", "c": 2}


def test_what_the_user_changed_since_is_the_users(base: Base) -> None:
    seen(base, {"HyperParameters": {"a": "1"}})
    base.write("input/config/hyperparameters.json", {"a": "user"})
    found = seen(base, {"HyperParameters": {"a": "2", "b": "2"}})
    assert found["SM_HPS"] == {"a": "user", "b": 2}


def test_a_job_without_a_request_finds_the_folder_as_it_was(base: Base) -> None:
    base.write("input/config/hyperparameters.json", {"own": "1"})
    seen(base, request(base), **hosts())
    base.path("input/config/job.json").unlink()
    found = seen(base)
    assert found == {"hyperparameters": {"own": "1"}, "SM_HPS": {"own": 1}}
    assert ours(base) == ["hyperparameters.json"]


def test_looking_at_a_job_sees_what_running_it_would(base: Base) -> None:
    seen(base, {"HyperParameters": {"a": "1"}})
    base.write("input/config/job.json", {"HyperParameters": {"b": "2"}})
    result = dry.look(base, "env", "--json")
    assert json.loads(result.out)["arguments"] == ["-b", "2"]


@pytest.mark.parametrize("arguments", [("check",), ("env",), ("env", "--launch")])
def test_looking_at_a_job_writes_nothing(base: Base, arguments: tuple[str, ...]) -> None:
    base.write("input/config/job.json", request(base))
    base.script("")
    before = sorted(base.root.rglob("*"))
    assert dry.look(base, *arguments).status == 0
    assert sorted(base.root.rglob("*")) == before


def test_nothing_is_written_where_a_platform_runs_the_job(base: Base) -> None:
    base.write("input/config/hyperparameters.json", {"a": "1"})
    assert dry.train(base.script("")).status == 0
    assert ours(base) == ["hyperparameters.json"]


def test_a_job_that_is_refused_writes_nothing(base: Base) -> None:
    base.write("input/config/job.json", request(base, TrainingJobName="a/b"))
    assert dry.train(base.script("")).status == 1
    assert ours(base) == []


@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o644])
def test_hyperparameters_are_as_private_as_the_request(base: Base, permissions: int) -> None:
    path = base.write("input/config/job.json", {"HyperParameters": {"api_token": "hunter2z"}})
    path.chmod(permissions)
    seen(base)
    assert mode(base, "hyperparameters.json") == permissions
    assert mode(base, "resourceconfig.json") == 0o644
    assert mode(base, ".sm-runtime.json") == 0o600


def test_a_file_of_the_user_gets_no_new_readers(base: Base) -> None:
    base.write("input/config/hyperparameters.json", {"a": "1"}).chmod(0o644)
    base.write("input/config/resourceconfig.json", {"topology": None}).chmod(0o640)
    seen(base, SM_RUNTIME_JOB=json.dumps({"HyperParameters": {"api_token": "hunter2z"}}))
    assert config(base, "hyperparameters") == {"a": "1", "api_token": "hunter2z"}
    assert mode(base, "hyperparameters.json") == 0o600
    assert mode(base, "resourceconfig.json") == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_files_go_to_the_owner_that_the_job_names(base: Base) -> None:
    job = json.dumps({"HyperParameters": {"a": "1"}})
    seen(base, SM_RUNTIME_JOB=job, SM_RUNTIME_CHOWN="1234:1235")
    folder = base.path("input/config")
    for path in (folder.parent, folder, *folder.iterdir()):
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235), path


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_a_file_of_the_user_stays_the_users(base: Base) -> None:
    path = base.write("input/config/hyperparameters.json", {"a": "1"})
    os.chown(path, 1234, 1235)
    seen(base, {"HyperParameters": {"b": "1"}})
    assert config(base, "hyperparameters") == {"a": "1", "b": "1"}
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235)


TWO = {"ResourceConfig": {"InstanceCount": 2}, "HyperParameters": {"a": "1"}}
ABOUT = {"SM_RUNTIME_HOSTS": "algo-1,algo-2"}


def test_a_host_that_follows_another_in_a_folder_has_files_of_its_own(base: Base) -> None:
    for host in ("algo-1", "algo-2"):
        found = seen(base, TWO, **ABOUT, SM_RUNTIME_CURRENT_HOST=host)
        assert found["resourceconfig"]["current_host"] == host


def test_what_a_crash_has_left_is_not_the_users(base: Base) -> None:
    seen(base, {"HyperParameters": {"a": "1"}})
    base.path("input/config/hyperparameters.json").write_bytes(b"")  # as a crash of the host may
    base.write("input/config/.sm-runtime-0123456789ab", "half")
    assert seen(base, {"HyperParameters": {"b": "2"}})["hyperparameters"] == {"b": "2"}
    assert not base.path("input/config/.sm-runtime-0123456789ab").exists()


def test_what_an_earlier_attempt_wrote_is_known_whatever_came_after_it(base: Base) -> None:
    """A job that is killed between its record and its files leaves those of the one before."""
    for number in range(3):
        seen(base, {"HyperParameters": {"n": str(number)}})
        stale = base.path("input/config/hyperparameters.json").read_bytes()
        seen(base, {"HyperParameters": {"n": "other"}})
        base.path("input/config/hyperparameters.json").write_bytes(stale)
        assert seen(base, {"HyperParameters": {"n": "last"}})["SM_HPS"] == {"n": "last"}


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"files": {"hyperparameters": 1}}', None])
def test_a_record_that_is_none_ends_no_job(base: Base, record: bytes | None) -> None:
    base.path("input/config").mkdir(parents=True)
    if record is None:
        os.mkfifo(base.path("input/config/.sm-runtime.json"))
    else:
        base.write("input/config/.sm-runtime.json", record)
    assert seen(base, {"HyperParameters": {"a": "1"}})["hyperparameters"] == {"a": "1"}

"""The files that scripts open are there in a self-managed job, and no job mistakes them later."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.harness import RUNTIME, Base, Result, eventually

NAMES = ("hyperparameters", "inputdataconfig", "resourceconfig", "checkpointconfig")
SHOW = """\
import glob, json, os
folder = os.environ["SM_INPUT_CONFIG_DIR"]
found = {}
for path in glob.glob(folder + "/*.json"):
    with open(path) as file:
        found[os.path.basename(path)[:-5]] = json.load(file)
found["SM_HPS"] = json.loads(os.environ["SM_HPS"])
print(json.dumps(found))
"""
"""What a script that opens the files sees."""
GROUP = {"instance_group_name": "homogeneousCluster", "instance_type": "ml.r", "hosts": ["h"]}


def request(base: Base, **more: Any) -> dict[str, Any]:
    base.write("source/x", "1")
    return {
        "TrainingJobName": "j",
        "HyperParameters": {"lr": "0.1", "text": '"a b"', "sagemaker_container_log_level": "20"},
        "InputDataConfig": [
            {
                "ChannelName": "train",
                "DataSource": {"S3DataSource": {"S3Uri": f"file://{base.path('source')}"}},
                "ContentType": "text/csv",
            }
        ],
        "ResourceConfig": {"InstanceType": "ml.r", "InstanceCount": 1},
        **more,
    }


def hosts(name: str = "h") -> dict[str, str]:
    return {"SM_RUNTIME_HOSTS": "h", "SM_RUNTIME_CURRENT_HOST": name}


def seen(base: Base, job: Any = None, **environ: str) -> dict[str, Any]:
    """Run a script that opens the files; return what it saw."""
    if job is not None:
        base.write("input/config/job.json", job)
    result = base.script(SHOW).run(**environ)
    assert result.status == 0, result.log
    found: dict[str, Any] = json.loads(result.out)
    found.pop("job", None)
    return found


def config(base: Base, name: str) -> Any:
    return json.loads(base.path(f"input/config/{name}.json").read_text())


def test_a_script_finds_all_files_in_the_platforms_shape(base: Base) -> None:
    assert seen(base, request(base), **hosts()) == {
        "hyperparameters": {"lr": "0.1", "text": '"a b"', "sagemaker_container_log_level": "20"},
        "inputdataconfig": {
            "train": {
                "TrainingInputMode": "File",
                "S3DistributionType": "FullyReplicated",
                "RecordWrapperType": "None",
                "ContentType": "text/csv",
            }
        },
        "resourceconfig": {
            "current_host": "h",
            "current_instance_type": "ml.r",
            "current_group_name": "homogeneousCluster",
            "hosts": ["h"],
            "instance_groups": [GROUP],
            "network_interface_name": "eth0",
        },
        "SM_HPS": {"lr": 0.1, "text": "a b"},
    }


def test_the_files_say_what_the_variables_say(base: Base) -> None:
    script = SHOW + (
        "for name in ('RESOURCE_CONFIG', 'INPUT_DATA_CONFIG'):\n"
        "    assert json.loads(os.environ['SM_' + name]) =="
        " found[name.lower().replace('_', '')], name\n"
    )
    base.write("input/config/job.json", request(base))
    result = base.script(script).run()
    assert result.status == 0, result.log


def test_a_model_dir_is_to_a_file_what_it_is_to_the_arguments(base: Base, tmp_path: Path) -> None:
    job = request(base, HyperParameters={"model_dir": '"s3://b/m"'})
    base.write("input/config/job.json", job)
    result = base.script("").run("env", "--json", command=RUNTIME)
    assert json.loads(result.out)["arguments"] == ["--model_dir", str(base.path("shared/model"))]
    unreachable = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a"}
    base.script("").run(**unreachable, AWS_SECRET_ACCESS_KEY="b", AWS_MAX_ATTEMPTS="1")
    text = config(base, "hyperparameters")["model_dir"]
    assert json.loads(text) == str(base.path("shared/model"))


def test_a_script_that_reads_a_pipe_needs_no_file_but_the_request(base: Base) -> None:
    job = request(base)
    job["InputDataConfig"][0]["InputMode"] = "Pipe"
    base.write("input/config/job.json", job)
    base.script(
        "import os\n"
        "from sm_runtime.pipe_mode.records import read_records\n"
        "folder = os.environ['SM_INPUT_DIR']\n"
        "print(list(read_records('train', 'TextLine', config_dir=folder + '/config',"
        " pipe_dir=folder + '/data', state_dir=folder + '/state')))\n"
    )
    result = base.run()
    assert (result.status, result.out) == (0, b"[b'1']\n"), result.log


def lines(result: Result, *words: str) -> list[str]:
    return [line for line in result.log.splitlines() if all(word in line for word in words)]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
@pytest.mark.parametrize("there", [True, False], ids=["a folder", "no folder"])
def test_a_folder_that_cannot_be_written_is_one_line(base: Base, there: bool) -> None:
    folder = base.path("input/config" if there else "input")
    folder.mkdir(parents=True)
    mount = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
    base.script("print(__import__('os').environ['SM_HP_A'])")
    result = base.run(
        prefix=("unshare", "-m", "sh", "-ec", mount, "sh", str(folder)),
        SM_RUNTIME_JOB=json.dumps({"HyperParameters": {"a": "1"}}),
    )
    assert (result.status, result.out) == (0, b"1\n"), result.log
    (line,) = lines(result, "cannot be written")
    assert "Read-only file system" in line
    assert all(f"{name}.json" in line for name in NAMES[:3])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_a_file_that_is_mounted_by_itself_stays_as_it_is(base: Base) -> None:
    base.write("input/config/hyperparameters.json", {"a": "1"})
    base.write("input/config/job.json", {"HyperParameters": {"b": "1"}})
    path = str(base.path("input/config/hyperparameters.json"))
    mount = 'mount --bind "$1" "$1" && shift && exec "$@"'
    result = base.script(SHOW).run(prefix=("unshare", "-m", "sh", "-ec", mount, "sh", path))
    assert result.status == 0, result.log
    assert json.loads(result.out)["SM_HPS"] == {"a": 1, "b": 1}
    assert len(lines(result, "cannot be written", "hyperparameters.json")) == 1
    assert config(base, "hyperparameters") == {"a": "1"}


WAITS = """\
import os, time
print("ready", flush=True)
while not os.path.exists("go"):
    time.sleep(0.02)
"""
TWO = {"ResourceConfig": {"InstanceCount": 2}, "HyperParameters": {"a": "1"}}
ABOUT = {"SM_RUNTIME_HOSTS": "algo-1,algo-2"}


def test_hosts_that_share_a_folder_are_not_taken_for_each_other(base: Base) -> None:
    base.write("input/config/job.json", TWO)
    first = base.script(WAITS).start(**ABOUT, SM_RUNTIME_CURRENT_HOST="algo-1")
    first.ready()
    before = base.path("input/config/resourceconfig.json").stat().st_ino
    base.write("code/other.py", "import os; print(os.environ['SM_CURRENT_HOST'])")
    second = base.run(**ABOUT, SM_RUNTIME_CURRENT_HOST="algo-2", SAGEMAKER_PROGRAM="other.py")
    assert (second.status, second.out) == (0, b"algo-2\n"), second.log
    (line,) = lines(second, "uses this folder at the same time")
    assert "resourceconfig.json" in line and "hyperparameters.json" not in line
    assert config(base, "resourceconfig")["current_host"] == "algo-1"
    assert base.path("input/config/resourceconfig.json").stat().st_ino == before
    base.write("code/go", "")
    assert first.wait().status == 0


def test_two_attempts_at_once_both_run(base: Base) -> None:
    base.write("input/config/job.json", {"HyperParameters": {"a": "1"}})
    started = [base.script(SHOW).start() for _ in range(4)]
    results = [one.wait() for one in started]
    for result in results:
        assert result.status == 0, result.log
        assert json.loads(result.out)["SM_HPS"] == {"a": 1}
    eventually(lambda: config(base, "hyperparameters") == {"a": "1"}, "the file is there")

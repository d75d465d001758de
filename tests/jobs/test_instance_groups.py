"""Hosts of instance groups know of each other, and what each leaves is kept."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from tests.harness import Base

HOSTS = ("algo-1", "algo-2", "algo-3")
GROUPS = [
    {"InstanceGroupName": "readers", "InstanceType": "ml.c5.large", "InstanceCount": 2},
    {"InstanceGroupName": "trainers", "InstanceType": "ml.g5.large", "InstanceCount": 1},
]
SCRIPT = """\
import json, os
env = json.loads(os.environ["SM_TRAINING_ENV"])
with open(os.path.join(os.environ["SM_INPUT_CONFIG_DIR"], "resourceconfig.json")) as file:
    assert json.load(file) == env["resource_config"]
open(os.path.join(os.environ["SM_MODEL_DIR"], os.environ["SM_CURRENT_HOST"]), "w").close()
keys = ("current_instance_group", "current_instance_group_hosts", "hosts", "is_hetero")
channels = list(env["channel_input_dirs"].items())
print(json.dumps([*(env[key] for key in keys), [n for n, path in channels if os.listdir(path)]]))
"""


def bases(tmp_path: Path, **more: Any) -> list[Base]:
    """Return a base folder for each host of a job with instance groups."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").write_text("1")
    source = {"S3Uri": (tmp_path / "data").as_uri(), "InstanceGroupNames": ["readers"]}
    job = {
        "TrainingJobName": "j",
        "InputDataConfig": [{"ChannelName": "raw", "DataSource": {"S3DataSource": source}}],
        "OutputDataConfig": {"S3OutputPath": (tmp_path / "out").as_uri()},
        "ResourceConfig": {"InstanceGroups": GROUPS},
        **more,
    }
    made = []
    for host in HOSTS:
        base = Base(tmp_path / host)
        base.script(SCRIPT).write("input/config/job.json", job)
        base.environ["SM_RUNTIME_CURRENT_HOST"] = host
        made.append(base)
    return made


def models(tmp_path: Path) -> dict[str, list[str]]:
    found = {}
    for path in (tmp_path / "out/j/output").glob("model*.tar.gz"):
        with tarfile.open(path) as tar:
            found[path.name] = tar.getnames()
    return found


def test_each_host_is_in_its_group_and_each_model_is_kept(tmp_path: Path) -> None:
    seen = []
    for base in bases(tmp_path):
        result = base.run(SM_RUNTIME_HOSTS=",".join(HOSTS))
        assert result.status == 0, result.log
        seen.append(json.loads(result.out))
    readers = ["readers", ["algo-1", "algo-2"], list(HOSTS), True, ["raw"]]
    assert seen[:2] == [readers, readers]
    assert seen[2][:4] == ["trainers", ["algo-3"], list(HOSTS), True]
    assert seen[2][4] == []
    assert models(tmp_path) == {
        "model.tar.gz": ["algo-1"],
        "model-algo-2.tar.gz": ["algo-2"],
        "model-algo-3.tar.gz": ["algo-3"],
    }


def test_groups_that_train_by_themselves_do_not_take_each_others_model(tmp_path: Path) -> None:
    """Each has a leader of its own; a group of one host needs no other to run."""
    groups = [{**group, "InstanceCount": 1} for group in GROUPS]
    flag = {"sagemaker_multi_worker_mirrored_strategy_enabled": "true"}
    resources = {"InstanceGroups": groups}
    for base in bases(tmp_path, ResourceConfig=resources, HyperParameters=flag)[:2]:
        result = base.run(SM_RUNTIME_HOSTS="algo-1,algo-2")
        assert result.status == 0, result.log
    assert models(tmp_path) == {"model.tar.gz": ["algo-1"], "model-algo-2.tar.gz": ["algo-2"]}

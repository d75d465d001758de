"""Which hosts a job with instance groups must have, and who says which group they are in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import dry
from tests.harness import Base

HOSTS = ("algo-1", "algo-2", "algo-3")
GROUPS = [
    {"InstanceGroupName": "readers", "InstanceType": "ml.c5.large", "InstanceCount": 2},
    {"InstanceGroupName": "trainers", "InstanceType": "ml.g5.large", "InstanceCount": 1},
]


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
        base.script("").write("input/config/job.json", job)
        base.environ["SM_RUNTIME_CURRENT_HOST"] = host
        made.append(base)
    return made


@pytest.mark.parametrize("hosts", ["", "algo-1", "algo-1,algo-2", "algo-1,algo-2,algo-3,algo-4"])
def test_too_few_hosts_or_too_many_are_an_error(tmp_path: Path, hosts: str) -> None:
    base = bases(tmp_path)[0]
    result = dry.train(base, SM_RUNTIME_HOSTS=hosts)
    assert result.status == 1
    assert "InstanceGroups: asks for 3 hosts, but" in base.failure_json()["message"]
    assert not (tmp_path / "out").exists()
    assert "InstanceGroups" in dry.look(base, "check", SM_RUNTIME_HOSTS=hosts).out


def test_the_groups_of_the_file_win(tmp_path: Path) -> None:
    base = bases(tmp_path)[1]
    own = [
        {"instance_group_name": "readers", "instance_type": "t", "hosts": ["algo-1", "algo-3"]},
        {"instance_group_name": "mine", "instance_type": "u", "hosts": ["algo-2"]},
    ]
    resources = {"hosts": list(HOSTS), "current_host": "algo-2", "instance_groups": own}
    base.write("input/config/resourceconfig.json", resources)
    result = dry.train(base)
    assert result.status == 0, result.log
    env = json.loads(result.environ["SM_TRAINING_ENV"])
    found = env["current_instance_group"], env["current_instance_group_hosts"]
    assert found == ("mine", ["algo-2"])
    assert json.loads(base.path("input/config/resourceconfig.json").read_text()) == {
        **env["resource_config"]
    }

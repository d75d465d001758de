"""Which hosts a job with instance groups must have, and who says which group they are in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import dry
from tests.hosts import GROUP_HOSTS, bases_of_groups


@pytest.mark.parametrize("hosts", ["", "algo-1", "algo-1,algo-2", "algo-1,algo-2,algo-3,algo-4"])
def test_too_few_hosts_or_too_many_are_an_error(tmp_path: Path, hosts: str) -> None:
    base = bases_of_groups(tmp_path)[0]
    result = dry.train(base, SM_RUNTIME_HOSTS=hosts)
    assert result.status == 1
    assert "InstanceGroups: asks for 3 hosts, but" in base.failure_json()["message"]
    assert not (tmp_path / "out").exists()
    assert "InstanceGroups" in dry.look(base, "check", SM_RUNTIME_HOSTS=hosts).out


def test_the_groups_of_the_file_win(tmp_path: Path) -> None:
    base = bases_of_groups(tmp_path)[1]
    own = [
        {"instance_group_name": "readers", "instance_type": "t", "hosts": ["algo-1", "algo-3"]},
        {"instance_group_name": "mine", "instance_type": "u", "hosts": ["algo-2"]},
    ]
    resources = {"hosts": list(GROUP_HOSTS), "current_host": "algo-2", "instance_groups": own}
    base.write("input/config/resourceconfig.json", resources)
    result = dry.train(base)
    assert result.status == 0, result.log
    env = json.loads(result.environ["SM_TRAINING_ENV"])
    found = env["current_instance_group"], env["current_instance_group_hosts"]
    assert found == ("mine", ["algo-2"])
    assert json.loads(base.path("input/config/resourceconfig.json").read_text()) == {
        **env["resource_config"]
    }

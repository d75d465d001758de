"""Hosts of instance groups know of each other, and what each leaves is kept."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from tests.hosts import GROUP_HOSTS, GROUPS, bases_of_groups

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


def models(tmp_path: Path) -> dict[str, list[str]]:
    found = {}
    for path in (tmp_path / "out/j/output").glob("model*.tar.gz"):
        with tarfile.open(path) as tar:
            found[path.name] = tar.getnames()
    return found


def test_each_host_is_in_its_group_and_each_model_is_kept(tmp_path: Path) -> None:
    seen = []
    for base in bases_of_groups(tmp_path, SCRIPT):
        result = base.run(SM_RUNTIME_HOSTS=",".join(GROUP_HOSTS))
        assert result.status == 0, result.log
        seen.append(json.loads(result.out))
    readers = ["readers", ["algo-1", "algo-2"], list(GROUP_HOSTS), True, ["raw"]]
    assert seen[:2] == [readers, readers]
    assert seen[2][:4] == ["trainers", ["algo-3"], list(GROUP_HOSTS), True]
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
    for base in bases_of_groups(tmp_path, SCRIPT, ResourceConfig=resources, HyperParameters=flag)[
        :2
    ]:
        result = base.run(SM_RUNTIME_HOSTS="algo-1,algo-2")
        assert result.status == 0, result.log
    assert models(tmp_path) == {"model.tar.gz": ["algo-1"], "model-algo-2.tar.gz": ["algo-2"]}

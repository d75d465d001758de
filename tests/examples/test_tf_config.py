"""TensorFlow reads every TF_CONFIG that the runtime writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.examples.example import python

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(300)]

GOLDEN = Path(__file__).parents[1] / "unit" / "golden" / "tf_config.json"
RESOLVE = """
import json, os, sys
import tensorflow as tf
found = []
for text in json.loads(sys.argv[1]):
    os.environ["TF_CONFIG"] = text
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    cluster = resolver.cluster_spec().as_dict()
    task = {"index": resolver.task_id, "type": resolver.task_type}
    address = resolver.master() if resolver.task_type in cluster else None
    found.append([cluster, task, address])
print(json.dumps(found))
"""


def test_the_cluster_resolver_reads_what_was_meant() -> None:
    texts = [
        text
        for case in json.loads(GOLDEN.read_text())
        for processes in case["TF_CONFIG"].values()
        for text in processes.values()
    ]
    meant = []
    for config in map(json.loads, texts):
        cluster, task = config["cluster"], config["task"]
        own = cluster.get(task["type"])
        address = own[task["index"]] if own else None
        # To a single worker TensorFlow speaks within the process.
        alone = len([each for part in cluster.values() for each in part]) == 1
        meant.append([cluster, task, "" if alone else address])
    assert len(meant) > 30
    assert json.loads(python(RESOLVE, json.dumps(texts)).splitlines()[-1]) == meant

"""A parameter server of TensorFlow's, in a process of its own; it uses no GPU.

The variable TF_CONFIG says which one. It serves until it is ended.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module


def main() -> None:
    """Serve."""
    config = json.loads(os.environ["TF_CONFIG"])
    try:
        tf = import_module("tensorflow")
    except ImportError as error:
        sys.exit(f"a parameter server needs TensorFlow: {error}")
    v1 = tf.compat.v1
    server = tf.distribute.Server(
        config["cluster"],
        job_name=config["task"]["type"],
        task_index=config["task"]["index"],
        config=v1.ConfigProto(device_count={"GPU": 0}),
    )
    server.join()

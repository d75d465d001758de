"""Programs that run in processes of their own, where others start them or in the script's place.

They are run as files: ``python -m`` imports modules of the job's before any of ours.
"""

from __future__ import annotations

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
LAUNCHER_STUB = os.path.join(_HERE, "launcher_stub.py")
RANK = os.path.join(_HERE, "rank.py")
_START = os.path.join(_HERE, "start.py")


def start(python: str, target: str) -> tuple[str, ...]:
    """Return the argument vector that runs ``target``, a module or a function ``module:function``.

    A module gets the arguments that follow.
    """
    return (python, _START, target)


def parameter_server() -> None:
    """Serve as a parameter server of TensorFlow's, without a GPU, until the process is ended.

    The variable TF_CONFIG says which one.
    """
    import json
    from importlib import import_module

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

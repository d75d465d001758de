"""For frameworks that do something before, around or after the user's script.

``SAGEMAKER_TRAINING_MODULE=my_framework.training:main`` has the runtime call ``main()``, in a
process of its own with the script's environment and working directory, in place of the script. It
calls ``run_script``, which runs the script to its end. The runtime does all the rest as ever.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

COMMAND = "SM_RUNTIME_COMMAND"
"""The variable that holds the script's argument vector, as JSON."""


def command(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the argument vector that runs the user's script.

    Raises RuntimeError where the job names no program.
    """
    text = environ.get(COMMAND)
    if not text:
        raise RuntimeError("the job names no program: set SAGEMAKER_PROGRAM")
    return tuple(json.loads(text))


def training_env(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return what is known of the job: ``SM_TRAINING_ENV``, decoded.

    Its keys are those of SageMaker's toolkit: ``hyperparameters``, ``channel_input_dirs``,
    ``hosts``, ``current_host``, ``num_gpus``, ``model_dir``, ``output_data_dir`` and so on.
    """
    decoded: dict[str, Any] = json.loads(environ["SM_TRAINING_ENV"])
    return decoded


def run_script(
    arguments: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> None:
    """Run the user's script to its end; returns only when it succeeded.

    ``arguments`` follow those of the hyperparameters, ``environ`` is added to the environment, and
    ``prefix`` is put before the command: a launcher and its options. A script that fails ends this
    process with its status (128 + the signal that ended it). Stop signals reach the script by
    themselves; this process waits for it to end.
    """
    stops = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    # A handler, not SIG_IGN, which the script would inherit.
    before = {number: signal.signal(number, lambda *_: None) for number in stops}
    try:
        argv = (*prefix, *command(), *arguments)
        status = subprocess.Popen(argv, env={**os.environ, **(environ or {})}).wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status:
        sys.exit(status if status > 0 else 128 - status)

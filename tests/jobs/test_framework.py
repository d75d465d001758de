"""A framework runs in place of the script, and runs it."""

from __future__ import annotations

import signal

import pytest

from tests.harness import Base

HOOK = """
import os, sys
from sm_runtime import framework

def main():
    env = framework.training_env()
    print("before", env["hyperparameters"]["epochs"], flush=True)
    framework.run_script(["--more", "a b"], {"FROM_HOOK": "yes"}, prefix=["env", "PREFIX=1"])
    print("after", flush=True)
"""
SCRIPT = """
import os, sys
print("script", sys.argv[1:], os.environ["FROM_HOOK"], os.environ["PREFIX"], flush=True)
sys.exit(int(os.environ.get("STATUS", "0")))
"""


@pytest.fixture
def hooked(base: Base) -> Base:
    base.write("code/my_framework/training.py", HOOK)
    base.environ["SAGEMAKER_TRAINING_MODULE"] = "my_framework.training:main"
    return base.script(SCRIPT).hyperparameters(epochs="3")


def test_the_framework_runs_the_script_with_what_it_adds(hooked: Base) -> None:
    result = hooked.run()
    assert result.status == 0, result.log
    script = "script ['--epochs', '3', '--more', 'a b'] yes 1"
    assert result.out.decode().splitlines() == ["before 3", script, "after"]


def test_a_script_that_fails_ends_the_framework_with_its_status(hooked: Base) -> None:
    result = hooked.run(STATUS="7")
    assert result.status == 7
    assert b"after" not in result.out


def test_a_stop_lets_the_script_save_and_then_the_framework_end(hooked: Base) -> None:
    hooked.script(
        "import signal, sys\n"
        "def save(*_):\n    print('saved', flush=True)\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\nprint('ready', flush=True)\n"
        "while True: signal.pause()"
    )
    running = hooked.start()
    running.ready(b"ready\n")
    running.send(signal.SIGTERM)
    result = running.wait()
    assert result.status == 0, result.log
    assert result.out.decode().splitlines()[-2:] == ["saved", "after"]


def test_a_script_ended_by_a_signal_gives_128_plus_it(hooked: Base) -> None:
    hooked.script("import os; os.kill(os.getpid(), 11)")
    assert hooked.run().status == 139


def test_a_framework_needs_no_program(base: Base) -> None:
    base.write("code/mine.py", "def main(): print('trained')")
    result = base.run(SAGEMAKER_TRAINING_MODULE="mine:main")
    assert (result.status, result.out) == (0, b"trained\n"), result.log


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("mine.py", "mine:main"),
        ("sklearn-container/training.py", "sklearn-container.training:main"),
        ("2nd/_/x-1.py", "2nd._.x-1:main"),
        ("mine.py", "mine:Framework.main"),
    ],
)
def test_any_module_that_can_be_imported_is_a_framework(base: Base, file: str, value: str) -> None:
    base.write(
        f"code/{file}",
        "def main(): print('trained')\nclass Framework:\n    main = staticmethod(main)\n",
    )
    result = base.run(SAGEMAKER_TRAINING_MODULE=value)
    assert (result.status, result.out) == (0, b"trained\n"), result.log


def test_the_hook_of_awss_tensorflow_images_is_what_the_runtime_does_itself(base: Base) -> None:
    """Also where their toolkit is installed: the environment of an image is inherited."""
    hook = "sagemaker_tensorflow_container.training:main"
    base.write("code/sagemaker_tensorflow_container/training.py", "def main(): print('theirs')")
    base.script("import os, sys; print(sys.argv[1:], os.environ['SM_FRAMEWORK_MODULE'])")
    base.hyperparameters(epochs="3")
    result = base.run(SAGEMAKER_TRAINING_MODULE=hook)
    assert result.status == 0, result.log
    assert result.out.decode() == f"['--epochs', '3'] {hook}\n"


def test_their_hook_keeps_no_way_of_distributed_training_away(base: Base) -> None:
    base.script("import json, os; print(json.loads(os.environ['TF_CONFIG'])['task']['type'])")
    base.hyperparameters(sagemaker_multi_worker_mirrored_strategy_enabled="true")
    hook = "sagemaker_tensorflow_container.training:main"
    result = base.run(SAGEMAKER_TRAINING_MODULE=hook)
    assert result.status == 0, result.log
    assert result.out.decode().splitlines()[-1] == "worker"


def test_a_framework_that_is_missing_says_so(base: Base) -> None:
    base.script("").run(SAGEMAKER_TRAINING_MODULE="nosuch.module:main")
    assert base.failure().startswith("ModuleNotFoundError: No module named 'nosuch'")

"""Scripts and framework hooks import SageMaker's toolkits, which are not installed."""

from __future__ import annotations

import ast
import json
import signal
import tarfile
from pathlib import Path

import pytest

from tests.harness import PACKAGE, Base, eventually

CONTENT = {"training": {"TrainingInputMode": "File", "ContentType": "text/csv"}}
GROUPS = [
    {"instance_group_name": "data", "instance_type": "ml.c5.xlarge", "hosts": ["algo-1"]},
    {"instance_group_name": "dnn", "instance_type": "ml.p3.2xlarge", "hosts": ["algo-2"]},
]
SHOWS_ENVIRONMENT = """
import json
from sagemaker_training import environment

env = environment.Environment()
print(json.dumps({name: env[name] for name in (
    "hyperparameters", "channel_input_dirs", "model_dir", "num_gpus", "current_host", "hosts",
    "is_master", "user_entry_point")}))
print(json.dumps(env.to_cmd_args()))
"""
COMPARES = """
import json, os, sys
from sagemaker_training import environment

env = environment.Environment()
of_the_sdk_3 = ("SM_SOURCE_DIR", "SM_ENTRY_SCRIPT", "SM_INPUT_DATA_DIR", "SM_OUTPUT_FAILURE",
                "SM_HOST_COUNT", "SM_CURRENT_HOST_RANK", "SM_MASTER_ADDR", "SM_MASTER_PORT")
given = {name: value for name, value in os.environ.items()
         if name.startswith("SM_") and not name.startswith(("SM_RUNTIME_", *of_the_sdk_3))}
made = env.to_env_vars()
legal = {name.replace("-", "_"): value for name, value in made.items()}
print(given == {**made, **legal}, dict(env) == json.loads(os.environ["SM_TRAINING_ENV"]))
print(env.to_cmd_args() == sys.argv[1:])
if "--step" in sys.argv:
    env.hyperparameters["step"] = "two words"
    print(env.to_cmd_args()[-2:], env.to_env_vars()["SM_HP_STEP"])
"""
SERVES_TOO = """
import argparse, os
from sagemaker_containers.beta.framework import (
    content_types, encoders, env, modules, transformer, worker)

def input_fn(data, content_type):
    return encoders.decode(data, content_type)

def output_fn(prediction, accept):
    return worker.Response(encoders.encode(prediction, accept), mimetype=accept)

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int)
    parser.add_argument("--model-dir", default=os.environ["SM_MODEL_DIR"])
    args = parser.parse_args()
    print(args.depth, content_types.JSON, env.model_dir == args.model_dir)
    output_fn([1], "application/json")
"""
OLD_STYLE = """
import sagemaker_containers

env = sagemaker_containers.training_env()
print(env.hosts, env.current_host, env.channel_input_dirs.get("training"), env.num_gpus)
"""
HETEROGENEOUS = """
from sagemaker_training import environment

env = environment.Environment()
print(env.is_hetero, env.current_instance_group, env.instance_groups_dict["data"]["hosts"][0])
"""
ENCODES = """
import sys
from sagemaker_containers.beta.framework import encoders, errors

assert "numpy" not in sys.modules
for kind in ("application/x-npy", "text/csv", "application/json"):
    print(encoders.decode(encoders.encode([[1, 2], [3, 4]], kind), kind).tolist())
print(encoders.decode("a,b", "text/csv").tolist())
try:
    encoders.decode("", "image/png")
except errors.UnsupportedFormatError as error:
    print(error)
"""
HOOK = """
from sagemaker_training import entry_point, environment, errors, runner

def main():
    env = environment.Environment(hyperparameters=environment.read_hyperparameters())
    try:
        entry_point.run(
            env.module_dir, env.user_entry_point, env.to_cmd_args(), env.to_env_vars(),
            capture_error=True, runner_type=runner.{kind}RunnerType)
    except errors.ExecuteUserScriptError as error:
        print(type(error).__name__, error.return_code, error.output.splitlines()[-1], flush=True)
        raise
    print("after", flush=True)
"""
OLD_HOOK = """
import sagemaker_containers.beta.framework as framework

def main():
    hyperparameters = framework.env.read_hyperparameters()
    env = framework.training_env(hyperparameters=hyperparameters)
    framework.modules.run_module(
        env.module_dir, env.to_cmd_args(), env.to_env_vars(), env.module_name)
    framework.entry_point.run(
        env.module_dir, "other.sh", ["a b"], {"MORE": "yes"},
        runner=framework.runner.ProcessRunnerType)
"""
PACKAGES = ("sagemaker_training", "sagemaker_containers")


def channel(base: Base) -> Base:
    base.write("input/config/inputdataconfig.json", CONTENT)
    base.write("input/data/training/a.csv", "1\n")
    return base


def hooked(base: Base, script: str, kind: str = "Process", hook: str = HOOK) -> Base:
    base.write("code/my_framework/training.py", hook.replace("{kind}", kind))
    base.environ["SAGEMAKER_TRAINING_MODULE"] = "my_framework.training:main"
    return base.script(script).hyperparameters(depth="3", sagemaker_job_name='"j"')


# -- scripts -----------------------------------------------------------------------------------


def test_a_script_reads_the_job_from_the_toolkits_environment(base: Base) -> None:
    channel(base).script(SHOWS_ENVIRONMENT).hyperparameters(depth="3", name='"x y"')
    result = base.run()
    assert result.status == 0, result.log
    shown, arguments = map(json.loads, result.out.splitlines())
    host = shown["current_host"]
    assert shown == {
        "hyperparameters": {"depth": 3, "name": "x y"},
        "channel_input_dirs": {"training": str(base.path("input/data/training"))},
        "model_dir": str(base.path("model")),
        "num_gpus": 0,
        "current_host": host,
        "hosts": [host],
        "is_master": True,
        "user_entry_point": "train.py",
    }
    assert arguments == ["--depth", "3", "--name", "x y"]


@pytest.mark.parametrize(
    "options", [{}, {"SM_RUNTIME_ARGUMENT_STYLE": "flags"}, {"SAGEMAKER_JOB_NAME": "j"}]
)
def test_its_variables_and_arguments_are_those_of_the_script(
    base: Base, options: dict[str, str]
) -> None:
    channel(base).script(COMPARES)
    base.hyperparameters(**{"batch-size": "8", "step": "1", "debug": "true"}, sagemaker_x="1")
    result = base.run(**options)
    assert result.status == 0, result.log
    assert result.out.decode().splitlines() == [
        "True True",
        "True",
        "['--step', 'two words'] two words",
    ]


def test_what_is_too_long_for_a_variable_is_in_the_environment(base: Base) -> None:
    script = (
        "import os\nfrom sagemaker_training import environment\n"
        "env = environment.Environment()\n"
        "print('SM_TRAINING_ENV' in os.environ, len(env.hyperparameters['b']), env.hosts,"
        " sorted(env), env.to_cmd_args()[1][:2])"
    )
    base.script(script).hyperparameters(a="x" * 70_000, b="y" * 70_000)
    result = base.run()
    assert result.status == 0, result.log
    assert result.out.startswith(b"False 70000 ['"), result.out
    assert b"'user_entry_point'] xx" in result.out


def test_groups_of_a_heterogeneous_cluster_are_there(base: Base) -> None:
    base.script(HETEROGENEOUS).write(
        "input/config/resourceconfig.json",
        {
            "current_host": "algo-1",
            "hosts": ["algo-1"],
            "current_group_name": "data",
            "instance_groups": [GROUPS[0], {**GROUPS[1], "hosts": []}],
        },
    )
    result = base.run()
    assert (result.status, result.out) == (0, b"True data algo-1\n"), result.log


def test_a_script_of_the_older_toolkit_runs(base: Base) -> None:
    channel(base).script(OLD_STYLE)
    result = base.run()
    assert result.status == 0, result.log
    assert str(base.path("input/data/training")) in result.out.decode()


def test_what_serves_can_be_imported_and_refuses_when_it_is_used(base: Base) -> None:
    base.script(SERVES_TOO).hyperparameters(depth="3")
    result = base.run()
    assert result.out == b"3 application/json True\n", result.log
    assert result.status == 1
    assert base.failure().startswith(
        "NotImplementedError: sagemaker_containers.beta.framework.worker.Response serves models;"
        " sm_runtime trains only"
    )


def test_an_interpreter_has_the_finder_last_and_the_folder_nowhere(base: Base) -> None:
    base.script(
        "import importlib.util, sys\n"
        "print(sys.meta_path[-1].__name__, [p for p in sys.path if 'inject' in p])\n"
        "print([m for m in sys.modules if m.startswith('sagemaker')])\n"
        "print(importlib.util.find_spec('sagemaker'), importlib.util.find_spec('environment'))"
    )
    result = base.run()
    assert result.out.decode().splitlines() == ["_StandIns []", "[]", "None None"], result.log


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_that_is_installed_wins(base: Base, tmp_path: Path, name: str) -> None:
    installed = tmp_path / "site" / name
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("real = True")
    base.script(f"import {name}; print({name}.real)")
    result = base.run(PYTHONPATH=str(tmp_path / "site"))
    assert (result.status, result.out) == (0, b"True\n"), result.log


# -- framework hooks ---------------------------------------------------------------------------


def test_a_hook_runs_the_script_with_the_toolkits_entry_point(base: Base) -> None:
    hooked(base, "import sys; print(sys.argv[1:]); print('warning', file=sys.stderr)")
    result = base.run()
    assert result.status == 0, result.log
    assert result.out == b"['--depth', '3']\nafter\n"
    assert "\nwarning\n" in result.log


def test_the_reason_of_a_failure_is_the_scripts_own(base: Base) -> None:
    hooked(base, "import sys\nprint('before', file=sys.stderr)\nraise ValueError('bad data')")
    result = base.run()
    assert result.status == 1
    assert result.out == b"ExecuteUserScriptError 1 ValueError: bad data\n"
    assert base.failure().startswith("ValueError: bad data (train.py:3) [")
    said = 'ExitCode 1\nErrorMessage "Traceback (most recent call last):'
    assert "before\nTraceback" in result.log and said in result.log
    assert base.failure_json()["class"] == "ValueError"


def test_a_failure_without_a_traceback_says_how_the_script_ended(base: Base) -> None:
    hooked(
        base, "import os, sys\nprint('why', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)"
    )
    result = base.run()
    assert (result.status, result.out) == (1, b"ExecuteUserScriptError 137 why\n"), result.log
    assert base.failure().startswith('ExecuteUserScriptError: ExitCode 137 ErrorMessage "why"')
    assert "killed by SIGKILL" in base.failure()


def test_output_is_in_the_log_as_it_arrives(base: Base) -> None:
    hooked(
        base,
        "import signal, sys\nprint('half a line', end='', file=sys.stderr, flush=True)\n"
        "signal.pause()",
    )
    running = base.start()
    eventually(lambda: b"half a line" in running.err, "the output")
    running.send(signal.SIGTERM)
    assert running.wait().status == 1
    assert base.failure().startswith("ExecuteUserScriptError: stopped by SIGTERM, ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_reaches_the_script_once_which_saves(base: Base, number: signal.Signals) -> None:
    hooked(
        base,
        "import signal, sys, time\n"
        "def save(*_):\n    print('saving', flush=True)\n    time.sleep(0.5)\n"
        "    print('saved', flush=True)\n    sys.exit(0)\n"
        f"signal.signal({int(number)}, save)\nprint('ready', flush=True)\n"
        "while True: signal.pause()",
    )
    running = base.start()
    running.ready(b"ready\n")
    running.send(number)
    result = running.wait()
    assert result.status == 0, result.log
    assert result.out.decode().splitlines() == ["ready", "saving", "saved", "after"]


def test_a_hook_of_the_older_toolkit_runs_modules_and_commands(base: Base) -> None:
    hooked(base, "import sys; print(__name__, sys.argv[1:])", hook=OLD_HOOK)
    base.write("code/other.sh", 'echo "$1 $MORE $SM_HP_DEPTH"\n')
    result = base.run()
    assert result.status == 0, result.log
    assert result.out.decode().splitlines() == ["__main__ ['--depth', '3']", "a b yes 3"]


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("MPI", "sagemaker_mpi_enabled"),
        ("TorchDistributed", "sagemaker_torch_distributed_enabled"),
        ("SMDataParallel", "sagemaker_mpi_enabled or sagemaker_torch_distributed_enabled"),
    ],
)
def test_a_hook_that_asks_for_a_launcher_is_told_who_has_it(
    base: Base, kind: str, key: str
) -> None:
    result = hooked(base, "print('ran')", kind).run()
    assert (result.status, result.out) == (1, b"")
    assert base.failure_json()["class"] == "ClientError"
    assert f"set the hyperparameter {key} to true" in base.failure_json()["message"]


def test_a_secret_among_the_arguments_is_in_no_text_of_a_failure(base: Base) -> None:
    hooked(base, "raise SystemExit(3)").hyperparameters(api_key="hunter2hunter2", depth="1")
    result = base.run()
    assert result.status == 1
    assert "--api_key ****" in result.log
    assert "hunter2" not in result.log + base.failure()


EMPTY = """
from sagemaker_training import entry_point

def main():
    entry_point.run({uri!r}, "mine.py", ["--x", "1"], {{"MORE": "yes"}})
"""


@pytest.mark.parametrize("form", ["a folder", "an archive", "a file"])
def test_code_that_only_the_hook_knows_is_placed(base: Base, tmp_path: Path, form: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "mine.py").write_text("import os, sys; print(sys.argv, os.environ['MORE'])")
    uri = {"a folder": source, "a file": source / "mine.py", "an archive": tmp_path / "a.tar.gz"}
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(source / "mine.py", "mine.py")
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook/empty.py").write_text(EMPTY.format(uri=str(uri[form])))
    base.environ["PYTHONPATH"] = str(tmp_path / "hook")
    result = base.run(SAGEMAKER_TRAINING_MODULE="empty:main")
    assert (result.status, result.out) == (0, b"['mine.py', '--x', '1'] yes\n"), result.log


def test_an_older_python_can_import_them() -> None:
    files = sorted((PACKAGE / "inject").rglob("*.py"))
    assert len(files) > 20
    for file in files:
        ast.parse(file.read_text(), feature_version=(3, 8))


def test_a_block_has_a_time_limit_and_a_function_its_arguments(base: Base) -> None:
    base.script(
        "import time\nfrom sagemaker_training import functions, timeout\n"
        "print(functions.matching_args(lambda b, a: 0, {'a': 1, 'b': 2, 'c': 3}))\n"
        "try:\n    with timeout.timeout(seconds=0.05):\n        time.sleep(30)\n"
        "except timeout.TimeoutError as error:\n    print(error)"
    )
    result = base.run()
    assert result.out == b"{'a': 1, 'b': 2}\ntimed out after 0.05 seconds\n", result.log


def test_what_the_toolkit_may_write_does_not_change_how_the_job_ends(base: Base) -> None:
    base.script(
        "from sagemaker_training import files, intermediate_output\n"
        "files.write_success_file()\n"
        "assert intermediate_output.start_sync('s3://b/p', 'eu-west-1') is None\n"
        "files.write_failure_file('my own reason')\nraise SystemExit(1)"
    )
    assert base.run().status == 1
    assert base.failure() == "my own reason"
    assert not base.path("output/success").exists()

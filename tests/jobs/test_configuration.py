"""Configuration as the command reads it, and jobs run by hand; its rules are in tests/unit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import RUNTIME, Base, at_opt_ml, control_group


def test_a_malformed_file_ends_the_job_in_one_sentence(base: Base) -> None:
    path = base.write("input/config/hyperparameters.json", '{\n "a": 1,\n "b" 2}')
    result = base.script("print('ran')").run()
    assert (result.status, result.out) == (1, b"")
    headline = base.failure().splitlines()[0]
    assert headline.startswith(f"ConfigError: {path}: invalid JSON at line 3 column 6")
    assert str(path) in result.log and "Traceback" not in result.log
    assert base.failure_json()["phase"] == "config"


def test_check_lists_every_problem_at_once(base: Base) -> None:
    base.write("input/config/resourceconfig.json", {"current_host": "b", "hosts": ["a"]})
    base.hyperparameters(sagemaker_mpi_enabled="maybe")
    result = base.script("print('ran')").run("check", command=RUNTIME)
    assert result.status == 1
    first, second = result.out.decode().splitlines()
    assert "sagemaker_mpi_enabled" in first + second and "current_host" in first + second


def test_a_channel_without_its_folder_is_a_warning(base: Base) -> None:
    base.write("input/config/inputdataconfig.json", {"train": {}})
    result = base.script("print('ran')").run()
    assert (result.status, result.out) == (0, b"ran\n"), result.log
    where = f"channel train: {base.path('input/data/train')} does not exist"
    (line,) = [line for line in result.log.splitlines() if where in line]
    assert " WARNING " in line


def test_an_empty_base_folder_with_a_script_runs(base: Base) -> None:
    result = base.script("import os; print(os.environ['SM_CHANNELS'])").run()
    assert result.status == 0, result.log
    assert result.out == b"[]\n"


def test_a_job_runs_without_network_or_credentials(base: Base) -> None:
    result = base.script("print('ran')").run(prefix=("unshare", "-n"))
    assert (result.status, result.out) == (0, b"ran\n"), result.log


def test_opt_ml_is_the_default(tmp_path: Path) -> None:
    """In a mount namespace of its own, where /opt/ml may be anything."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/train.py").write_text("import os; print(os.getcwd())")
    done = subprocess.run(
        [*at_opt_ml(tmp_path), *RUNTIME, "train"],
        env={"PATH": os.environ["PATH"], "SAGEMAKER_PROGRAM": "train.py"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"/opt/ml/code\n"), done.stderr


def test_the_environment_reaches_the_script(base: Base) -> None:
    base.hyperparameters(**{"batch-size": "32", "flag": "true"})
    base.write("input/config/inputdataconfig.json", {"val.set-1": {}})
    result = base.script(
        "import os\nfor n in ('SM_HP_BATCH-SIZE', 'SM_HP_BATCH_SIZE', 'SM_HP_FLAG',"
        "'SM_CHANNEL_VAL.SET-1', 'SM_CHANNEL_VAL_SET_1', 'SM_MODEL_DIR', 'MINE'):"
        " print(os.environ[n])"
    ).run(MINE="a b\nc")
    data = str(base.path("input/data/val.set-1"))
    lines = ["32", "32", "true", data, data, str(base.path("model")), "a b", "c"]
    assert result.out.decode().splitlines() == lines


def test_affinity_limits_the_cpus(base: Base) -> None:
    base.script("import os; print(os.environ['SM_NUM_CPUS'])")
    assert base.run(prefix=("taskset", "-c", "0")).out == b"1\n"


def test_a_relative_base_folder_is_one_for_the_script_too(base: Base) -> None:
    base.script("import os; open(os.environ['SM_MODEL_DIR'] + '/m', 'w')")
    enter = ("sh", "-c", f'cd "{base.root.parent}" && exec "$@"', "sh")
    assert base.run(prefix=enter, SAGEMAKER_BASE_DIR=base.root.name).status == 0
    assert base.path("model/m").exists()


def test_the_quota_of_the_cgroup_limits_the_cpus(base: Base) -> None:
    v1 = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "70000"}
    with control_group("cpu", v1, {"cpu.max": "70000 100000"}) as prefix:
        out = base.script("import os; print(os.environ['SM_NUM_CPUS'])").run(prefix=prefix).out
    assert out == b"1\n"


def test_env_prints_lines_that_a_shell_can_read(base: Base) -> None:
    base.hyperparameters(**{"batch-size": "3 2", "x": "it's\nnew"})
    out = base.script("").run("env", command=RUNTIME).out
    done = subprocess.run(
        ["sh", "-euc", out.decode() + '\nprintf "%s|" "$@"; printf "%s" "$SM_HP_BATCH_SIZE"'],
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"--batch-size|3 2|-x|it's\nnew|3 2"


@pytest.mark.parametrize("arguments", [(), ("train",), ("env",), ("check",)])
def test_help_is_shown_and_nothing_runs(base: Base, arguments: tuple[str, ...]) -> None:
    result = base.script("print('ran')").run(*arguments, "--help", command=RUNTIME)
    assert result.status == 0
    assert b"usage:" in result.out and b"ran\n" not in result.out


@pytest.mark.parametrize("arguments", [("nosuch",), (), ("env", "--nosuch"), ("train", "x")])
def test_a_wrong_command_line_is_an_error(base: Base, arguments: tuple[str, ...]) -> None:
    result = base.script("print('ran')").run(*arguments, command=RUNTIME)
    assert result.status == 2
    assert b"usage:" in result.err and result.out == b""


def test_the_command_train_takes_the_platforms_argument(base: Base) -> None:
    train = str(Path(sys.executable).parent / "train")
    for arguments in ((), ("train",)):
        result = base.script("print('ran')").run(*arguments, command=(train,))
        assert (result.status, result.out) == (0, b"ran\n"), result.log


def test_no_heavy_module_is_imported_on_the_way(base: Base) -> None:
    result = base.script("").run(
        command=(sys.executable, "-I", "-X", "importtime", "-m", "sm_runtime", "train")
    )
    imported = {line.rpartition("|")[2].strip() for line in result.log.splitlines()}
    assert "sm_runtime.processes.supervisor" in imported
    heavy = {"boto3", "numpy", "tensorflow", "tarfile", "importlib.metadata", "urllib.request"}
    heavy |= {"dataclasses", "inspect"}  # see job/dataclass.py
    assert not heavy & imported

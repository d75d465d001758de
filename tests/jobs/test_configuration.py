"""Files that are absent or malformed, and jobs run by hand."""

from __future__ import annotations

import codecs
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import RUNTIME, Base, at_opt_ml, control_group

FILES = ("hyperparameters.json", "inputdataconfig.json", "resourceconfig.json", "job.json")
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "blank": (b"  \n", ""),
    "invalid JSON": (b'{\n "a": 1,\n "b" 2}', "line 3 column 6"),
    "BOM": (codecs.BOM_UTF8 + b"{}", "byte order mark"),
    "UTF-16": ("{}".encode("utf-16"), ""),
    "not UTF-8": (b'{"a": "\xff"}', "UTF-8"),
    "a list": (b"[]", ""),
    "a number": (b"3", ""),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_ends_the_job_in_one_sentence(base: Base, file: str, case: str) -> None:
    data, hint = MALFORMED[case]
    path = base.write(f"input/config/{file}", data)
    result = base.script("print('ran')").run()
    assert (result.status, result.out) == (1, b"")
    headline = base.failure().splitlines()[0]
    assert headline.startswith("ConfigError: ")
    assert str(path) in result.log and file in base.failure()
    assert hint in base.failure()
    assert "Traceback" not in result.log
    assert base.failure_json()["phase"] == "config"


WRONG = {
    "current_host": (
        "resourceconfig.json",
        {"current_host": "b", "hosts": ["a"]},
        ("current_host", "b"),
    ),
    "hosts": (
        "resourceconfig.json",
        {"current_host": "a", "hosts": "a"},
        ("hosts",),
    ),
    "mode": (
        "inputdataconfig.json",
        {"train": {"TrainingInputMode": "Fiel"}},
        ("TrainingInputMode", "Fiel"),
    ),
    "reserved": (
        "hyperparameters.json",
        {"sagemaker_mpi_enabled": "maybe"},
        ("sagemaker_mpi_enabled", "maybe"),
    ),
    "level": (
        "hyperparameters.json",
        {"sagemaker_container_log_level": "loud"},
        ("sagemaker_container_log_level", "loud"),
    ),
    "nul": ("hyperparameters.json", {"a": "x\0y"}, ("a", "NUL")),
    "unknown key": ("job.json", {"TrainingJobNam": "x"}, ("TrainingJobNam",)),
    "scheme": (
        "job.json",
        {"OutputDataConfig": {"S3OutputPath": "ftp://x"}},
        ("S3OutputPath", "ftp://x"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_named_with_its_file_and_key(base: Base, case: str) -> None:
    file, document, words = WRONG[case]
    path = base.write(f"input/config/{file}", document)
    result = base.script("print('ran')").run()
    assert (result.status, result.out) == (1, b"")
    assert all(word in base.failure() for word in (path.name, *words)), base.failure()


def test_check_lists_every_problem_at_once(base: Base) -> None:
    for case in ("current_host", "mode", "reserved"):
        file, document, _ = WRONG[case]
        base.write(f"input/config/{file}", document)
    result = base.script("").run("check", command=RUNTIME)
    assert result.status == 1
    text = result.out.decode()
    assert len(text.splitlines()) == 3
    assert all(file in text for file in FILES[:3])


def test_check_looks_at_code_and_channels(base: Base) -> None:
    base.write("input/config/inputdataconfig.json", {"train": {"TrainingInputMode": "File"}})
    base.environ["SAGEMAKER_PROGRAM"] = "nosuch.py"
    base.write("code/train.py", "")
    before = sorted(base.root.rglob("*"))
    result = base.run("check", command=RUNTIME)
    assert result.status == 1
    assert "nosuch.py" in result.out.decode() and "channel train" in result.out.decode()
    assert sorted(base.root.rglob("*")) == before
    base.environ["SAGEMAKER_PROGRAM"] = "train.py"
    base.write("input/data/train/x", "1")
    result = base.run("check", command=RUNTIME)
    assert (result.status, result.out) == (0, b"no problem found\n")


def problems(base: Base, **environ: str) -> list[str]:
    result = base.run("check", command=RUNTIME, **environ)
    assert result.status == 1, result.log
    assert "Traceback" not in result.log
    return result.out.decode().splitlines()


def test_check_lists_problems_of_every_kind_at_once(base: Base, tmp_path: Path) -> None:
    """Each of another part of the runtime: none of them hides the others."""
    source = {"S3DataSource": {"S3Uri": f"file://{tmp_path}/nosuch"}}
    base.write(
        "input/config/job.json",
        {
            "TrainingJobName": "a/b",
            "InputDataConfig": [
                {"ChannelName": "gone", "DataSource": source},
                {"ChannelName": "nowhere"},
                {"ChannelName": "unfed", "InputMode": "Pipe"},
                {"ChannelName": "mode", "InputMode": "Fiel"},
            ],
            "OutputDataConfig": {"S3OutputPath": f"file://{base.path('model')}/out"},
            "CheckpointConfig": {"S3Uri": f"file://{base.path('checkpoints')}/c"},
            "HyperParameters": {"long": "x" * 200_000, "sagemaker_mpi_enabled": "perhaps"},
            "ResourceConfig": {"InstanceCount": 2},
        },
    )
    os.mkfifo(base.path("input/config/resourceconfig.json"))
    base.environ["SAGEMAKER_PROGRAM"] = "nosuch.py"
    base.write("code/other.py", "")
    found = problems(base, SM_RUNTIME_STALL_SECONDS="soon")
    words = {
        "a file": "resourceconfig.json: is a FIFO",
        "the request": "TrainingJobName: must be",
        "a mode": "InputDataConfig[3].InputMode: must be",
        "a hyperparameter": "sagemaker_mpi_enabled: must be true or false",
        "an option": "SM_RUNTIME_STALL_SECONDS: must be a number",
        "the output": "S3OutputPath",
        "checkpoints": "CheckpointConfig.S3Uri",
        "a size": "hyperparameters: long: is 200000 bytes long",
        "the program": "program 'nosuch.py' is not in",
        "a source": "channel gone: ",
        "a channel's folder": f"channel nowhere: {base.path('input/data/nowhere')} does not exist",
        "a channel's FIFO": "channel unfed: ",
    }
    missing = [what for what, word in words.items() if not any(word in line for line in found)]
    assert not missing, found
    assert len(found) == len(words), found


def test_check_does_not_blame_what_it_cannot_know(base: Base) -> None:
    """The program, and where it is, may stand in the file that cannot be read."""
    base.write("input/config/hyperparameters.json", "{")
    assert len(problems(base)) == 1
    assert len(problems(base, SAGEMAKER_PROGRAM="train.py")) == 1
    base.write("code/other.py", "")
    assert len(problems(base, SAGEMAKER_PROGRAM="train.py")) == 2


def test_check_names_a_program_that_is_missing_beside_other_problems(base: Base) -> None:
    base.hyperparameters(sagemaker_program="nosuch.py", sagemaker_container_log_level="loud")
    base.write("code/other.py", "")
    assert [("nosuch.py" in line, "loud" in line) for line in problems(base)] == [
        (False, True),
        (True, False),
    ]


def test_check_says_each_thing_once(base: Base) -> None:
    base.write("input/config/job.json", {"InputDataConfig": [1], "OutputDataConfig": "x"})
    base.script("")
    found = problems(base)
    assert len(found) == len(set(found)) == 2


CHANNELS = {
    "managed": {"inputdataconfig": {"train": {}, "fast": {"TrainingInputMode": "FastFile"}}},
    "self-managed": {
        "job": {
            "InputDataConfig": [
                {"ChannelName": "train"},
                {"ChannelName": "fast", "InputMode": "FastFile"},
            ]
        }
    },
}


@pytest.mark.parametrize("mode", CHANNELS)
def test_a_channel_without_its_folder_is_a_warning(base: Base, mode: str) -> None:
    for name, document in CHANNELS[mode].items():
        base.write(f"input/config/{name}.json", document)
    result = base.script("print('ran')").run()
    assert (result.status, result.out) == (0, b"ran\n"), result.log
    for name in ("train", "fast"):
        where = f"channel {name}: {base.path('input/data', name)} does not exist"
        lines = [line for line in result.log.splitlines() if where in line]
        assert len(lines) == 1 and " WARNING " in lines[0], result.log
        assert where in problems(base)
        base.path("input/data", name).mkdir(parents=True)
        base.write(f"input/data/{name}/x", "1")
    assert " WARNING channel" not in base.run().log


def test_a_fifo_that_the_platform_makes_later_is_no_warning(base: Base) -> None:
    base.write("input/config/inputdataconfig.json", {"train": {"TrainingInputMode": "Pipe"}})
    assert "channel train" not in base.script("").run().log


def test_model_parallel_parameters_alone_are_an_ordinary_hyperparameter(base: Base) -> None:
    base.hyperparameters(mp_parameters='{"partitions": 2}')
    result = base.script("import sys; print(sys.argv[1:])").run()
    assert result.out == b"['--mp_parameters', 'partitions=2']\n"
    base.hyperparameters(mp_parameters='{"partitions": 2}', sagemaker_mpi_enabled="true")
    (problem,) = problems(base)
    assert "mp_parameters: asks for SageMaker's model parallel library" in problem


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


def test_no_program_names_what_to_set_and_what_was_found(base: Base) -> None:
    base.write("code/other.py", "")
    result = base.run()
    assert result.status == 1
    for word in ("SAGEMAKER_PROGRAM", "sagemaker_program", "other.py"):
        assert word in base.failure()


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


@pytest.mark.parametrize("command", ["train", "check"])
def test_a_key_that_cannot_be_encoded_is_a_problem(base: Base, command: str) -> None:
    base.write("input/config/hyperparameters.json", '{"\\ud800": "1"}')
    result = base.script("print('ran')").run(command, command=RUNTIME)
    assert result.status == 1
    assert "Traceback" not in result.log
    if command == "train":
        assert base.failure().startswith("ConfigError: ")


@pytest.mark.parametrize("command", ["train", "check"])
def test_a_distribution_that_is_proprietary_is_refused(base: Base, command: str) -> None:
    key = "sagemaker_distributed_dataparallel_enabled"
    base.hyperparameters(**{key: "true"})
    result = base.script("print('ran')").run(command, command=RUNTIME)
    assert result.status == 1, result.log
    assert key in result.out.decode() + result.log
    assert b"ran\n" not in result.out


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
        command=(sys.executable, "-X", "importtime", "-m", "sm_runtime", "train")
    )
    imported = {line.rpartition("|")[2].strip() for line in result.log.splitlines()}
    assert "sm_runtime.processes.supervisor" in imported
    heavy = {"boto3", "numpy", "tensorflow", "tarfile", "importlib.metadata", "urllib.request"}
    assert not heavy & imported

"""``docker run -v $PWD/ml:/opt/ml IMAGE``: a job by hand, with nothing but Docker."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.container import Ml, derived, run

SCRIPT = """
import json, os, sys
print("args", sys.argv[1:])
print("host", os.environ["SM_CURRENT_HOST"], "channels", os.environ["SM_CHANNELS"])
with open(os.path.join(os.environ["SM_MODEL_DIR"], "weights"), "w") as file:
    file.write("1 2 3")
with open(os.path.join(os.environ["SM_OUTPUT_DATA_DIR"], "notes"), "w") as file:
    file.write("fine")
"""


@pytest.mark.parametrize("command", [(), ("train",), ("sm-runtime", "train")])
@pytest.mark.parametrize("init", [(), ("--init",), ("--entrypoint", "")])
def test_every_way_to_start_an_image_runs_the_job(
    cpu_image: str, ml: Ml, command: tuple[str, ...], init: tuple[str, ...]
) -> None:
    ml.write("code/train.py", SCRIPT)
    # Docker drops the image's command together with its entry point.
    command = command or (("train",) if "--entrypoint" in init else ())
    result = run(
        cpu_image,
        *command,
        options=(*ml.mount, *init, "-e", "SAGEMAKER_PROGRAM=train.py", "--hostname", "anvil"),
    )
    assert result.status == 0, result.err
    assert "args []" in result.out
    assert "channels []" in result.out
    assert "tini" not in result.err
    assert ml.read("model/weights") == "1 2 3"
    assert ml.exists("output/success")


def test_train_as_the_entry_point_takes_the_platforms_argument(cpu_image: str, ml: Ml) -> None:
    ml.write("code/train.py", SCRIPT)
    result = run(
        cpu_image,
        "train",
        options=(*ml.mount, "--entrypoint", "train", "-e", "SAGEMAKER_PROGRAM=train.py"),
    )
    assert result.status == 0, result.err


def test_any_other_command_runs_as_it_stands(cpu_image: str) -> None:
    result = run(
        cpu_image, "python", "-c", "import os; print(os.getpid() > 1); raise SystemExit(7)"
    )
    assert (result.status, result.out) == (7, "True\n")


def test_a_job_needs_no_network_no_credentials_and_no_metadata(cpu_image: str, ml: Ml) -> None:
    ml.write("code/train.py", SCRIPT)
    result = run(
        cpu_image,
        options=(*ml.mount, "--network", "none", "-e", "SAGEMAKER_PROGRAM=train.py"),
    )
    assert result.status == 0, result.err
    assert not [line for line in result.err.splitlines() if "WARNING" in line or "ERROR" in line]


def test_hyperparameters_and_channels_come_from_the_mounted_files(cpu_image: str, ml: Ml) -> None:
    ml.write("code/main.py", SCRIPT)
    ml.write("input/data/train/part", "data")
    ml.write("input/config/inputdataconfig.json", {"train": {"TrainingInputMode": "File"}})
    ml.write(
        "input/config/hyperparameters.json",
        {"sagemaker_program": '"main.py"', "epochs": "3", "name": '"a b"'},
    )
    result = run(cpu_image, options=ml.mount)
    assert result.status == 0, result.err
    assert "args ['--epochs', '3', '--name', 'a b']" in result.out
    assert 'channels ["train"]' in result.out


def test_a_job_file_puts_the_artifacts_into_a_mounted_folder(cpu_image: str, ml: Ml) -> None:
    ml.write("code/train.py", SCRIPT)
    ml.write(
        "input/config/job.json",
        {
            "TrainingJobName": "by-hand",
            "HyperParameters": {"sagemaker_program": "train.py", "epochs": "3"},
            "OutputDataConfig": {"S3OutputPath": "file:///opt/ml/artifacts"},
        },
    )
    result = run(cpu_image, options=(*ml.mount, "--network", "none"))
    assert result.status == 0, result.err
    output = ml.root / "artifacts/by-hand/output"
    with tarfile.open(output / "model.tar.gz") as archive:
        assert [name for name in archive.getnames() if name.strip("./")] == ["weights"]
    assert (output / "output.tar.gz").exists()


@pytest.mark.parametrize("options", [(), ("--user", "1000:1000")])
def test_without_a_program_the_reason_says_what_to_set(
    cpu_image: str, ml: Ml, options: tuple[str, ...]
) -> None:
    ml.root.chmod(0o777)
    ml.write("code/one.py", "")
    ml.write("code/two.py", "")
    result = run(cpu_image, options=(*ml.mount, *options))
    assert result.status == 1
    failure = ml.read("output/failure")
    assert "SAGEMAKER_PROGRAM" in failure.splitlines()[0]
    assert "one.py" in failure and "two.py" in failure


def test_an_empty_folder_is_enough_to_be_told_what_is_missing(cpu_image: str, ml: Ml) -> None:
    result = run(cpu_image, options=ml.mount)
    assert result.status == 1
    assert "SAGEMAKER_PROGRAM" in ml.read("output/failure")
    assert run(cpu_image).status == 1


def test_a_failing_script_ends_the_container_with_its_status(cpu_image: str, ml: Ml) -> None:
    ml.write("code/train.py", "import sys; sys.exit('no more apples')")
    ml.write("code/train.sh", "exit 7")
    options = (*ml.mount, "-e")
    assert run(cpu_image, options=(*options, "SAGEMAKER_PROGRAM=train.py")).status == 1
    assert "no more apples" in ml.read("output/failure")
    assert run(cpu_image, options=(*options, "SAGEMAKER_PROGRAM=train.sh")).status == 7


def test_what_a_job_would_get_is_shown_without_running_it(cpu_image: str, ml: Ml) -> None:
    ml.write("code/train.py", SCRIPT)
    options = (*ml.mount, "-e", "SAGEMAKER_PROGRAM=train.py")
    shown = run(cpu_image, "sm-runtime", "env", "--json", options=options)
    environment = json.loads(shown.out)["environment"]
    assert environment["SM_USER_ENTRY_POINT"] == "train.py"
    assert environment["SM_MODEL_DIR"] == "/opt/ml/model"
    assert run(cpu_image, "sm-runtime", "check", options=options).status == 0


def test_the_output_is_that_of_the_script_and_the_log_goes_beside_it(
    cpu_image: str, ml: Ml
) -> None:
    ml.write("code/train.py", "import sys; print('out'); print('err', file=sys.stderr)")
    result = run(cpu_image, options=(*ml.mount, "-e", "SAGEMAKER_PROGRAM=train.py"))
    assert result.out == "out\n"
    assert "err\n" in result.err
    assert "Reporting training SUCCESS" in result.err


FRAMEWORK = """
import json, os
from sm_runtime import framework

def main():
    env = framework.training_env()
    print("before", env["hyperparameters"], flush=True)
    framework.run_script(["--more", "a b"], {"FROM_FRAMEWORK": "yes"})
    with open(os.path.join(env["model_dir"], "converted"), "w") as file:
        json.dump(os.listdir(env["model_dir"]), file)
"""
INSTRUCTIONS = """
COPY my_framework /tmp/my_framework
RUN cp -r /tmp/my_framework "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
ENV SAGEMAKER_TRAINING_MODULE=my_framework.training:main
"""


@pytest.fixture(scope="module")
def framework_image(cpu_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image of a framework that brings its own start."""
    context: Path = tmp_path_factory.mktemp("framework")
    (context / "my_framework").mkdir()
    (context / "my_framework/__init__.py").write_text("", encoding="utf-8")
    (context / "my_framework/training.py").write_text(FRAMEWORK, encoding="utf-8")
    with derived(cpu_image, context, INSTRUCTIONS) as name:
        yield name


def test_the_framework_of_an_image_runs_the_script(framework_image: str, ml: Ml) -> None:
    ml.write("code/train.py", "import os\nprint(os.environ['FROM_FRAMEWORK'])" + SCRIPT)
    ml.write(
        "input/config/hyperparameters.json", {"sagemaker_program": '"train.py"', "epochs": "3"}
    )
    result = run(framework_image, options=ml.mount)
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[:3] == [
        "before {'epochs': 3}",
        "yes",
        "args ['--epochs', '3', '--more', 'a b']",
    ]
    assert sorted(json.loads(ml.read("model/converted"))) == ["converted", "weights"]
    assert ml.exists("output/success")


def test_a_script_that_fails_ends_the_frameworks_image_with_its_status(
    framework_image: str, ml: Ml
) -> None:
    ml.write("code/train.py", "raise SystemExit(7)")
    result = run(framework_image, options=(*ml.mount, "-e", "SAGEMAKER_PROGRAM=train.py"))
    assert result.status == 7
    assert not ml.exists("model/converted")
    assert "7" in ml.read("output/failure").splitlines()[0]

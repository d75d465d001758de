"""``ContainerEntrypoint`` is the program, with all that the runtime does around a script."""

from __future__ import annotations

import json
import os
import signal
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Base, Result, at_opt_ml, processes_with

DUMP = "import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd()]))"
SHELL = ["/bin/sh", "-c"]


def request(base: Base, entry: list[str], arguments: list[str] | None = None, **more: Any) -> None:
    algorithm: dict[str, Any] = {"ContainerEntrypoint": entry}
    if arguments is not None:
        algorithm["ContainerArguments"] = arguments
    base.write(
        "input/config/job.json",
        {"TrainingJobName": "j", "AlgorithmSpecification": algorithm, **more},
    )


def test_the_entry_point_gets_its_arguments_and_no_hyperparameters(base: Base) -> None:
    words = ["a b", "", "$HOME", "*", "--x=1", "ä"]
    request(base, [sys.executable, "-c", DUMP], words, HyperParameters={"lr": "0.1"})
    result = base.run()
    assert result.status == 0, result.log
    assert json.loads(result.out)[0] == words


def test_the_entry_point_takes_the_place_of_the_program(base: Base) -> None:
    base.script("print('script')")
    request(base, ["printf"], ["entry"], HyperParameters={"sagemaker_program": "train.py"})
    assert base.run(SAGEMAKER_TRAINING_MODULE="no.such:hook").out == b"entry"


def test_an_entry_point_needs_no_code_and_no_program(base: Base) -> None:
    request(base, ["printf", "ran"])
    result = base.run()
    assert (result.status, result.out) == (0, b"ran"), result.log


def test_without_an_entry_point_the_arguments_are_the_scripts(base: Base) -> None:
    algorithm = {"ContainerArguments": ["--more", "a b"]}
    job = {"HyperParameters": {"lr": "0.1"}, "AlgorithmSpecification": algorithm}
    base.write("input/config/job.json", job)
    assert json.loads(base.script(DUMP).run().out)[0] == ["--lr", "0.1", "--more", "a b"]


def test_the_entry_point_has_the_variables_of_a_script(base: Base) -> None:
    text = 'printf "%s %s %s %s" "$SM_HP_LR" "$TRAINING_JOB_NAME" "$SM_MODEL_DIR" "$MINE"'
    more = {"HyperParameters": {"lr": "0.1"}, "Environment": {"MINE": "mine"}}
    request(base, SHELL, [text], **more)
    assert base.run().out.decode() == f"0.1 j {base.path('model')} mine"


def test_a_program_is_looked_for_on_the_path_of_the_job(base: Base, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho tool\n")
    tool.chmod(0o755)
    request(base, ["tool"], Environment={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert base.run().out == b"tool\n"


def run_in(base: Base, folder: Path, **environ: str) -> Result:
    return base.run(prefix=("sh", "-c", f'cd "{folder}" && exec "$@"', "sh"), **environ)


def test_it_runs_where_the_image_says(base: Base, tmp_path: Path) -> None:
    base.write("code/x", "")
    image = tmp_path / "image"
    image.mkdir()
    request(base, [sys.executable, "-c", DUMP])
    assert json.loads(run_in(base, image).out)[1] == str(image)


def test_it_runs_in_the_code_folder_where_the_image_says_nothing(base: Base) -> None:
    base.write("code/main.py", DUMP)
    request(base, [sys.executable, "main.py"])
    assert json.loads(base.run().out)[1] == str(base.path("code"))


def test_it_runs_in_the_code_folder_where_the_job_brings_code(base: Base, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(DUMP)
    archive = tmp_path / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "main.py", "main.py")
    submitted = {"sagemaker_submit_directory": json.dumps(archive.as_uri())}
    request(base, [sys.executable, "main.py"], HyperParameters=submitted)
    assert json.loads(run_in(base, tmp_path).out)[1] == str(base.path("code"))


def test_it_gets_the_signals_and_the_time_to_stop(base: Base, tmp_path: Path) -> None:
    text = (
        "trap 'echo saved > \"$SM_MODEL_DIR/m\"; exit 0' TERM; echo ready;"
        " while :; do sleep 0.05; done"
    )
    output = {"OutputDataConfig": {"S3OutputPath": (tmp_path / "out").as_uri()}}
    request(base, SHELL, [text], **output)
    running = base.start()
    running.ready()
    running.send(signal.SIGTERM)
    result = running.wait()
    assert result.status == 0, result.log
    with tarfile.open(tmp_path / "out/j/output/model.tar.gz") as tar:
        assert tar.getnames() == ["m"]


def test_it_leaves_nothing_behind(base: Base) -> None:
    marker = f"marker-{base.root}"
    request(base, SHELL, [f"sleep 1000 '{marker}' & echo $0"])
    assert base.run().status == 0
    assert processes_with(marker) == []


def test_how_it_fails_is_told(base: Base) -> None:
    raises = "raise ValueError('no such thing')"
    request(base, [sys.executable, "-c"], [raises])
    result = base.run()
    assert result.status == 1
    assert "ValueError: no such thing" in base.failure().splitlines()[0]
    request(base, SHELL, ["exit 42"])
    assert base.run().status == 42
    request(base, SHELL, ["kill -9 $$"])
    assert base.run().status == 137


@pytest.mark.parametrize(
    ("entry", "reason"),
    [("nosuch", "No such file"), ("/nosuch", "No such file"), ("/etc/passwd", "Permission denied")],
)
def test_a_program_that_cannot_be_started_is_named(base: Base, entry: str, reason: str) -> None:
    request(base, [entry])
    result = base.run()
    assert result.status == 1
    assert reason in base.failure().splitlines()[0] and f"{entry!r}" in base.failure()
    assert "Traceback" not in result.log


def test_a_secret_in_an_argument_is_not_shown(base: Base) -> None:
    request(base, ["printf", "%s %s %s", "--password"], ["hunter2yy", "--api-token=hunter2zz"])
    result = base.run()
    assert result.out == b"--password hunter2yy --api-token=hunter2zz"
    assert "hunter2" not in result.log


def test_it_is_run_on_each_host_whatever_the_hyperparameters_want(base: Base) -> None:
    request(
        base,
        ["printf", "ran"],
        HyperParameters={"sagemaker_mpi_enabled": "true"},
        ResourceConfig={"InstanceCount": 2},
    )
    result = base.run(SM_RUNTIME_HOSTS="a,b", SM_RUNTIME_CURRENT_HOST="b")
    assert (result.status, result.out) == (0, b"ran"), result.log
    assert result.log.count("sagemaker_mpi_enabled: has no effect") == 1


@pytest.mark.parametrize("entry", [["train"], ["sm-runtime", "train"], [*SHELL, "exec train"]])
def test_the_runtime_itself_as_entry_point_runs_the_script_once(
    base: Base, tmp_path: Path, entry: list[str]
) -> None:
    """To the inner one the outer one is the platform, and nothing starts itself without an end."""
    base.script(
        "import os, sys\n"
        "data = os.listdir(os.environ['SM_CHANNEL_T'])\n"
        "print('script', sys.argv[1:], os.environ['MINE'], data)\n"
        "open(os.environ['SM_MODEL_DIR'] + '/m', 'w').close()\n"
    )
    base.environ["PATH"] = f"{Path(sys.executable).parent}:{base.environ['PATH']}"
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").touch()
    source = {"S3DataSource": {"S3Uri": (tmp_path / "data").as_uri()}}
    request(
        base,
        entry,
        HyperParameters={"lr": "0.1"},
        Environment={"MINE": "mine"},
        InputDataConfig=[{"ChannelName": "t", "DataSource": source}],
        OutputDataConfig={"S3OutputPath": (tmp_path / "out").as_uri()},
    )
    result = base.run()
    assert result.status == 0, result.log
    assert result.out == b"script ['--lr', '0.1'] mine ['x']\n"
    assert result.log.count("model.tar.gz") == 1
    assert "no such setting" not in result.log
    base.script("raise ValueError('the reason')")
    assert base.run().status == 1
    assert base.failure().startswith("ValueError: the reason")


# What follows is the way in which the SageMaker Python SDK's ModelTrainer starts a job: programs of
# its own in one channel, the user's code in another, and a shell that runs the first of them.

DRIVER = """\

#!/bin/bash
set -e
failed() {
    status=$?
    [ -s /opt/ml/output/failure ] || echo "driver failed with $status" >> /opt/ml/output/failure
    exit $status
}
trap failed ERR
python=$(command -v python3 || command -v python)
for name in resourceconfig inputdataconfig; do
    cat "/opt/ml/input/config/$name.json"
    echo
done
$python /opt/ml/input/data/sm_drivers/scripts/variables.py
source /opt/ml/input/job.env
cd /opt/ml/input/data/code
if [ -f requirements.txt ]; then echo "requirements"; fi
$python /opt/ml/input/data/sm_drivers/run/script.py
echo "the driver is done"
"""
"""Like the real one it begins with an empty line: only a shell takes it for a script."""

VARIABLES = """\
import json, os, shlex

def read(name):
    with open(f"/opt/ml/input/config/{name}.json") as file:
        return json.load(file)

resources, channels, values = map(read, ("resourceconfig", "inputdataconfig", "hyperparameters"))
with open("/opt/ml/input/data/sm_drivers/sourcecode.json") as file:
    entry = json.load(file)["entry_script"]
hosts = sorted(resources["hosts"])
found = {
    "SM_ENTRY_SCRIPT": entry,
    "SM_HPS": json.dumps({key: json.loads(value) for key, value in values.items()}),
    "SM_HOST_COUNT": len(hosts),
    "SM_CURRENT_HOST_RANK": hosts.index(resources["current_host"]),
    "SM_CURRENT_INSTANCE_TYPE": resources["current_instance_type"],
    "SM_NETWORK_INTERFACE_NAME": resources["network_interface_name"],
    "SM_LOG_LEVEL": int(os.environ.get("SM_LOG_LEVEL", 20)),
    "SM_JOB": os.environ["TRAINING_JOB_NAME"],
    **{f"SM_CHANNEL_{name.upper()}": f"/opt/ml/input/data/{name}" for name in channels},
}
with open("/opt/ml/input/job.env", "w") as file:
    for name, value in found.items():
        file.write(f"export {name}={shlex.quote(str(value))}\\n")
"""
SCRIPT_DRIVER = """\
import json, os, subprocess, sys
values = json.loads(os.environ["SM_HPS"])
words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
process = subprocess.Popen(
    [sys.executable, os.environ["SM_ENTRY_SCRIPT"], *words],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
)
for line in process.stdout:
    print(line.decode().strip(), flush=True)
sys.exit(process.wait())
"""
USERS = """\
import os, sys
print("arguments", sys.argv[1:], os.environ["SM_JOB"], os.environ["SM_HOST_COUNT"])
print("data", os.listdir(os.environ["SM_CHANNEL_TRAIN"]))
if "--fail" in sys.argv:
    raise ValueError("the user's reason")
open(os.path.join(os.environ["SM_MODEL_DIR"], "weights"), "w").close()
"""


@pytest.fixture
def opt_ml(tmp_path: Path) -> Base:
    """A base folder that is ``/opt/ml`` to the job."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    made = Base(tmp_path / "opt_ml")
    made.environ["SAGEMAKER_BASE_DIR"] = "/opt/ml"
    return made


def model_trainer(base: Base, folder: Path, **hyperparameters: str) -> Result:
    """Run a job as ModelTrainer has it run."""
    sources = {
        "sm_drivers/sm_train.sh": DRIVER,
        "sm_drivers/scripts/variables.py": VARIABLES,
        "sm_drivers/run/script.py": SCRIPT_DRIVER,
        "sm_drivers/sourcecode.json": json.dumps({"entry_script": "train.py"}),
        "code/train.py": USERS,
        "train/part-0": "1",
    }
    for name, text in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    path = "/opt/ml/input/data/sm_drivers/sm_train.sh"
    request(
        base,
        ["/bin/bash"],
        ["-c", f"chmod +x {path} && {path}"],
        HyperParameters=hyperparameters,
        InputDataConfig=[
            {
                "ChannelName": name,
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": (folder / name).as_uri(),
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
                "InputMode": "File",
            }
            for name in ("train", "code", "sm_drivers")
        ],
        OutputDataConfig={"S3OutputPath": (folder / "out").as_uri()},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30},
        StoppingCondition={"MaxRuntimeInSeconds": 3600},
        RoleArn="arn:aws:iam::123456789012:role/r",
        EnableManagedSpotTraining=False,
    )
    return base.run(prefix=at_opt_ml(base.root))


def test_a_job_of_the_sdks_model_trainer_runs_to_its_end(opt_ml: Base, tmp_path: Path) -> None:
    result = model_trainer(opt_ml, tmp_path / "s3", lr="0.1", name='"a b"')
    assert result.status == 0, result.log
    out = result.out.decode().splitlines()
    assert "arguments ['--lr', '0.1', '--name', 'a b'] j 1" in out
    assert "data ['part-0']" in out
    assert out[-1] == "the driver is done"
    with tarfile.open(tmp_path / "s3/out/j/output/model.tar.gz") as tar:
        assert tar.getnames() == ["weights"]


def test_the_reason_that_a_driver_leaves_is_kept(opt_ml: Base, tmp_path: Path) -> None:
    result = model_trainer(opt_ml, tmp_path / "s3", fail="1")
    assert result.status == 1
    assert opt_ml.failure() == "driver failed with 1\n"
    assert b"ValueError: the user's reason" in result.out

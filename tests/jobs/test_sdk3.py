"""Jobs as the SageMaker SDK 3 starts them, and scripts that read its variables."""

from __future__ import annotations

import subprocess

from tests.harness import Base


def test_a_shell_script_reads_the_file_of_variables(base: Base) -> None:
    script = f'. "{base.root}/input/sm_training.env"\necho "$SM_HP_QUOTED:$SM_HOST_COUNT:$SM_HPS"\n'
    base.hyperparameters(quoted='it\'s "so"; $HOME', n=3)
    result = base.script(script, "run.sh").run()
    assert result.status == 0, result.log
    assert result.out.decode().startswith('it\'s "so"; $HOME:1:{')
    path = base.path("input/sm_training.env")
    assert path.stat().st_mode & 0o777 == 0o600
    command = ["sh", "-c", f'set -eu; . {path}; echo "$SM_CURRENT_HOST_RANK $SM_MASTER_PORT"']
    assert subprocess.run(command, capture_output=True, text=True).stdout == "0 7777\n"


def test_variables_of_both_kinds_agree(base: Base) -> None:
    script = (
        "import os\n"
        "e = os.environ\n"
        "assert e['SM_SOURCE_DIR'] == os.getcwd(), e['SM_SOURCE_DIR']\n"
        "assert e['SM_ENTRY_SCRIPT'] == e['SM_USER_ENTRY_POINT'] == 'train.py'\n"
        "assert e['SM_INPUT_DATA_DIR'] == e['SM_INPUT_DIR'] + '/data'\n"
        "assert e['SM_OUTPUT_FAILURE'] == e['SM_OUTPUT_DIR'] + '/failure'\n"
    )
    result = base.script(script).run()
    assert result.status == 0, result.log


def test_a_tuning_job_of_the_sdk_3_runs(base: Base) -> None:
    """Its tuner gives the program and the code without JSON quotes, beside two channels."""
    base.write("submitted/train.py", "import sys; print(sys.argv[1:])")
    base.environ.pop("SAGEMAKER_PROGRAM", None)
    base.write(
        "input/config/hyperparameters.json",
        {
            "sagemaker_program": "train.py",
            "sagemaker_submit_directory": f"file://{base.root}/submitted",
            "_tuning_objective_metric": "loss",
            "learning_rate": "0.1",
        },
    )
    channels = {"code": {"TrainingInputMode": "File"}, "sm_drivers": {"TrainingInputMode": "File"}}
    base.write("input/config/inputdataconfig.json", channels)
    base.write("input/data/code/train.py", "raise SystemExit('not this one')")
    base.write("input/data/sm_drivers/scripts/environment.py", "")
    result = base.run()
    assert (result.status, result.out) == (0, b"['--learning_rate', '0.1']\n"), result.log

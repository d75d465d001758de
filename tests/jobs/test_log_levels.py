"""What the log holds at the level that tools ask for."""

from __future__ import annotations

import json

from tests.harness import Base

SECRET = "hf_abcdefghijklmnopqrstuvwxyzabcdefgh"


def test_at_level_10_the_log_has_the_toolkits_block_masked(base: Base) -> None:
    base.hyperparameters(sagemaker_container_log_level="10", token=SECRET, lr="0.1")
    result = base.script("pass").run()
    assert result.status == 0, result.log
    block = result.log[result.log.index("Invoking user script\n") :]
    training = block.split("Training Env:\n\n")[1].split("\n\nEnvironment variables:\n\n")[0]
    assert json.loads(training)["hyperparameters"]["lr"] == 0.1
    variables = block.split("Environment variables:\n\n")[1].split("\n\nInvoking script with")[0]
    assert "SM_HP_LR=0.1" in variables.split("\n")
    command = block.split("Invoking script with the following command:\n\n")[1].split("\n\n")[0]
    assert command.endswith("train.py --lr 0.1 --token '***'")
    assert SECRET not in result.log


def test_at_other_levels_it_has_no_such_block(base: Base) -> None:
    result = base.script("pass").run()
    assert "Training Env:" not in result.log

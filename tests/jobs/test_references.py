"""Secrets by reference: read at the start, masked everywhere, given to the script alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness import Base

SECRET = "correct horse battery"
SCRIPT = """
import os, sys
print(sys.argv[1:], os.environ["SM_HP_API"], os.environ["DB"], file=open(os.environ["SEEN"], "w"))
print("the script says", sys.argv[2])
raise ValueError(os.environ["DB"])
"""


def test_the_script_has_the_values_and_nothing_else_has(base: Base, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(SECRET + "\n")
    reference = json.dumps({"$file": str(key)})
    base.write(
        "input/config/job.json",
        {
            "TrainingJobName": "job-1",
            "HyperParameters": {"api": reference, "n": "1"},
            "Environment": {"DB": reference},
            "OutputDataConfig": {"S3OutputPath": f"file://{base.root}/store"},
        },
    )
    seen = tmp_path / "seen"
    result = base.script(SCRIPT).run(SEEN=str(seen))
    assert result.status == 1
    assert seen.read_text() == f"['--api', '{SECRET}', '-n', '1'] {SECRET} {SECRET}\n"
    assert result.out.decode() == f"the script says {SECRET}\n", "its output is its own"
    log = result.log.replace(f"the script says {SECRET}", "")
    lines = [line for line in log.splitlines() if "sm-runtime" in line]
    assert SECRET not in "\n".join(lines)
    left = [path for path in base.root.rglob("*") if path.is_file() and path.suffix != ".gz"]
    holding = [path for path in left if SECRET.encode() in path.read_bytes()]
    assert holding == []
    assert (
        json.loads(base.path("input/config/hyperparameters.json").read_text())["api"] == reference
    )


def test_a_variable_of_the_image_may_be_a_reference(base: Base, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(SECRET)
    result = base.script("import os; print(len(os.environ['TOKEN_X']))").run(
        TOKEN_X=json.dumps({"$file": str(key)})
    )
    assert result.out == b"21\n", result.log


def test_what_cannot_be_read_is_named(base: Base) -> None:
    base.hyperparameters(api='{"$file": "/nonexistent/key"}')
    result = base.script("pass").run()
    assert result.status == 1
    assert "hyperparameters: api: $file: /nonexistent/key: does not exist" in base.failure()


@pytest.mark.parametrize("value", ['{"$file": 1}', '{"$file": "/a", "b": 1}', '["$file"]'])
def test_other_values_are_left_alone(base: Base, value: str) -> None:
    base.hyperparameters(api=value)
    assert base.script("pass").run().status == 0

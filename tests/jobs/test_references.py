"""Secrets by reference: read at the start, masked everywhere, given to the script alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness import Base

SECRETS = ["correct horse battery", '-----BEGIN KEY-----\nline "two" \\ \u00fc\n-----END KEY-----']
SCRIPT = """
import json, os, sys
json.dump([sys.argv[1:], os.environ["SM_HP_API"], os.environ["DB"]], open(os.environ["SEEN"], "w"))
print("the script says", len(sys.argv[2]))
raise ValueError(os.environ["DB"])
"""


@pytest.mark.parametrize("secret", SECRETS, ids=["words", "lines"])
def test_the_script_has_the_values_and_nothing_else_has(
    base: Base, tmp_path: Path, secret: str
) -> None:
    key = tmp_path / "key"
    key.write_text(secret + "\n")
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
    assert json.loads(seen.read_text()) == [["--api", secret, "-n", "1"], secret, secret]
    assert result.out.decode() == f"the script says {len(secret)}\n"
    part = secret.split("\n")[-2 if "\n" in secret else 0].encode("unicode_escape")[:12]
    ours = [line for line in result.log.splitlines() if "sm-runtime" in line]
    assert part.decode() not in "\n".join(ours)
    left = [path for path in base.root.rglob("*") if path.is_file() and path.suffix != ".gz"]
    assert [path for path in left if part in path.read_bytes()] == []
    assert (
        json.loads(base.path("input/config/hyperparameters.json").read_text())["api"] == reference
    )


def test_a_variable_of_the_image_may_be_a_reference(base: Base, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(SECRETS[0])
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

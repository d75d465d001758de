"""Hyperparameters reach the script's argv byte for byte, and nothing else is executed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from random import Random

import pytest

from tests.arguments_table import HOSTILE
from tests.harness import RUNTIME, Base

DUMP = "import json, sys; json.dump(sys.argv[1:], open('argv.json', 'w'))"
SHELL = """\
python3 - "$@" <<'END'
import json, sys
json.dump(sys.argv[1:], open('argv.json', 'w'))
END
"""
ENTRIES = {
    "script": ("train.py", DUMP),
    "script in a folder": ("src/train.py", DUMP),
    "module": ("-m pkg.train", DUMP),
    "dotted module": ("pkg.train", DUMP),
    "function": ("pkg.train:main", f"def main():\n    {DUMP}"),
    "shell": ("run.sh", SHELL),
    "bash": ("run.sh", "#!/bin/bash\n" + SHELL),
    "executable": ("./tool", f"#!/usr/bin/env python3\n{DUMP}"),
}


def place(base: Base, entry: str) -> None:
    program, text = ENTRIES[entry]
    file = "pkg/train.py" if "pkg" in program else program
    path = base.write(f"code/{file}", text)
    if entry == "executable":
        path.chmod(0o755)
    base.environ["SAGEMAKER_PROGRAM"] = program


def received(base: Base) -> list[str]:
    folders = [base.path("code"), base.path("code/src"), base.path("code/pkg")]
    found = [folder / "argv.json" for folder in folders if (folder / "argv.json").exists()]
    words: list[str] = json.loads(found[0].read_text())
    return words


@pytest.mark.parametrize("entry", ENTRIES)
def test_hostile_values_arrive_whole(base: Base, entry: str) -> None:
    place(base, entry)
    result = base.hyperparameters(**HOSTILE).run()
    assert result.status == 0, result.log
    expected = []
    for key in sorted(HOSTILE):
        expected += [f"-{key}" if len(key) == 1 else f"--{key}", HOSTILE[key]]
    assert received(base) == expected
    assert not list(base.root.rglob("PWN"))


@pytest.mark.parametrize("seed", [8, 9])
def test_a_thousand_random_byte_strings_arrive_whole(base: Base, seed: int) -> None:
    """Bytes that are no UTF-8 stand in JSON as the surrogates that os.fsdecode gives."""
    random = Random(seed)

    def text(longest: int) -> str:
        return os.fsdecode(
            bytes(random.randrange(1, 256) for _ in range(random.randrange(longest)))
        )

    values = {text(20).replace("=", "-"): text(200) for _ in range(500)}
    place(base, "script")
    base.hyperparameters(**{key: json.dumps(value) for key, value in values.items()})
    result = base.run()
    assert result.status == 0, result.log
    expected = [word for key in sorted(values) for word in (option(key), values[key])]
    assert received(base) == expected


def option(key: str) -> str:
    return f"--{key}" if len(key) > 1 else f"-{key}" if key else ""


def test_no_process_but_the_script_is_executed(base: Base, tmp_path: Path) -> None:
    place(base, "script")
    base.hyperparameters(**HOSTILE)
    trace = tmp_path / "trace"
    strace = ("strace", "-f", "-qq", "-e", "trace=execve", "-o", str(trace))
    result = base.run(prefix=strace, PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin")
    assert result.status == 0, result.log
    executed = [line for line in trace.read_text().splitlines() if line.endswith("= 0")]
    assert len(executed) == 2, executed
    assert RUNTIME[0] in executed[0] and "train.py" in executed[1]

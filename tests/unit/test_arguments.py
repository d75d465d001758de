"""Hyperparameters become the script's arguments, byte for byte, whatever the program is."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import dry
from tests.arguments_table import HOSTILE
from tests.harness import Base

PROGRAMS = (
    "train.py", "src/train.py", "-m pkg.train", "pkg.train", "pkg.train:main", "run.sh", "./tool"
)  # fmt: skip


def place(base: Base, program: str = "train.py") -> Base:
    path = base.write(f"code/{'pkg/train.py' if 'pkg' in program else program}", "#!/bin/sh\n")
    path.chmod(0o755)
    base.environ["SAGEMAKER_PROGRAM"] = program
    return base


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("encoded", [False, True], ids=["plain", "encoded by an SDK"])
def test_hostile_values_arrive_whole(base: Base, program: str, encoded: bool) -> None:
    values = {k: json.dumps(v) if encoded else v for k, v in HOSTILE.items()}
    result = dry.train(place(base, program).hyperparameters(**values))
    assert result.status == 0, result.log
    expected = []
    for key in sorted(HOSTILE):
        expected += [f"-{key}" if len(key) == 1 else f"--{key}", HOSTILE[key]]
    assert list(result.argv[-len(expected) :]) == expected


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40)
KEYS = TEXT.filter(lambda key: "=" not in key and not key.startswith("sagemaker_"))


@settings(max_examples=25)
@given(values=st.dictionaries(KEYS, TEXT, max_size=12))
def test_random_keys_and_values_arrive_whole(values: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = place(Base(Path(folder)))
        base.hyperparameters(**{key: json.dumps(value) for key, value in values.items()})
        result = dry.train(base)
        assert result.status == 0, result.log
        expected = [word for key in sorted(values) for word in (option(key), values[key])]
        assert list(result.argv[2:]) == expected


@pytest.mark.parametrize("seed", range(8))
def test_a_thousand_random_byte_strings_arrive_whole(base: Base, seed: int) -> None:
    """Bytes that are no UTF-8 stand in JSON as the surrogates that os.fsdecode gives."""
    random = Random(seed)

    def text(longest: int) -> str:
        return os.fsdecode(random.randbytes(random.randrange(longest)).replace(b"\0", b"\xff"))

    values = {text(20).replace("=", "-"): text(200) for _ in range(500)}
    place(base).hyperparameters(**{key: json.dumps(value) for key, value in values.items()})
    result = dry.train(base)
    assert result.status == 0, result.log
    expected = [word for key in sorted(values) for word in (option(key), values[key])]
    assert list(result.argv[2:]) == expected


def option(key: str) -> str:
    return f"--{key}" if len(key) > 1 else f"-{key}" if key else ""


STYLES: dict[str, tuple[dict[str, str], dict[str, Any], list[str]]] = {
    "default": (
        {},
        {"amp": "true", "ema": "false", "l": '["x","y"]', "v": "1.10"},
        ["--amp", "True", "--ema", "False", "-l", "['x', 'y']", "-v", "1.1"],
    ),
    "flags": (
        {"SM_RUNTIME_ARGUMENT_STYLE": "flags"},
        {"amp": "true", "ema": "false", "lr": "0.10"},
        ["--amp", "--lr", "0.1"],
    ),
    "json": (
        {"SM_RUNTIME_ARGUMENT_STYLE": "json"},
        {"ll": '["x", "y"]', "v": "1.10", "e": "1e3", "z": "007", "s": '"abc"', "t": "abc"},
        ["-e", "1e3", "--ll", '["x", "y"]', "-s", "abc", "-t", "abc", "-v", "1.10", "-z", "007"],
    ),
    "a verbatim list": (
        {"SM_RUNTIME_ARGS": '["--do_train", "--lr", "1", ""]'},
        {},
        ["--do_train", "--lr", "1", ""],
    ),
    "by hyperparameter": (
        {},
        {"sagemaker_runtime_argument_style": "flags", "amp": "true"},
        ["--amp"],
    ),
}


@pytest.mark.parametrize("style", STYLES)
def test_argument_styles(base: Base, style: str) -> None:
    environ, values, expected = STYLES[style]
    result = dry.train(place(base).hyperparameters(**values), **environ)
    assert result.status == 0, result.log
    assert list(result.argv[2:]) == expected


def test_an_sdk_and_a_plain_client_give_the_same_argv_without_noise(base: Base) -> None:
    plain = dry.train(place(base).hyperparameters(s="abc", lr="0.1", n="7"))
    assert plain.status == 0
    encoded = dry.train(base.hyperparameters(s='"abc"', lr="0.1", n=7))
    assert encoded.argv == plain.argv
    assert "pars" not in encoded.log.lower()

"""Every setting of the runtime can be read about."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sm_runtime.contract import hyperparameters
from sm_runtime.job.model import Options

PAGE = (Path(__file__).parents[3] / "docs/options.md").read_text(encoding="utf-8")
NAMES = {hyperparameters.VARIABLE_PREFIX + name.upper() for name in hyperparameters.OPTIONS}
OTHERS = {hyperparameters.VARIABLE_PREFIX + name for name in hyperparameters._OTHERS}
ROWS = [line for line in PAGE.splitlines() if line.startswith("| `SM_RUNTIME_")]
DOCUMENTED = [name for row in ROWS for name in re.findall("SM_RUNTIME_[A-Z_]+", row.split("|")[1])]
NUMBERS = ("cluster_port", "peer_wait_seconds", "peer_silence_seconds", "stall_seconds")


def test_each_setting_has_one_row_and_each_row_is_a_setting() -> None:
    assert sorted(DOCUMENTED) == sorted(NAMES | OTHERS)


def test_each_setting_is_a_field_of_the_options() -> None:
    assert set(Options.__annotations__) == set(hyperparameters.OPTIONS)


@pytest.mark.parametrize("name", NUMBERS)
def test_the_page_has_the_default_that_the_code_has(name: str) -> None:
    (row,) = [row for row in ROWS if f"`SM_RUNTIME_{name.upper()}`" in row.split("|")[1]]
    assert float(row.split("|")[2]) == getattr(Options(), name)

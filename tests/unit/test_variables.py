"""docs/variables.md names every variable that there is, and no other."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from sm_runtime.contract import environment
from sm_runtime.job.model import Channel, Cluster, Hardware, Job, Options, Paths

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "variables.md").read_text(encoding="utf-8")
OPTIONS_PAGE = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
SERVING_PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([^`]+)` \|([^|]*)\|[^|]*\|[^|]*\| (\d+\.\d+) \|$", re.MULTILINE)
ROWS = ROW.findall(PAGE)


def test_every_variable_of_the_script_has_a_row() -> None:
    job = Job(
        paths=Paths(),
        cluster=Cluster(current_host="a", hosts=("a",), topology={"x": 1}),
        hyperparameters={"<name>": 1},
        channels=(Channel(name="<name>", path="/p"),),
    )
    given = set(environment.variables(job, Hardware(cpus=1)))
    named = {name for name, _, _ in ROWS if name.startswith("SM_") and "RUNTIME" not in name}
    assert named == given


def test_every_row_has_a_type_and_a_version() -> None:
    assert len(ROWS) == len(re.findall(r"^\| `S", PAGE, re.MULTILINE))
    assert all(kind.strip() or "OPTION" in name for name, kind, _ in ROWS)


def test_every_variable_of_the_runtime_is_documented() -> None:
    sources = [path.read_text() for path in (ROOT / "sm_runtime").rglob("*.py")]
    used = set(re.findall(r"\bSM_RUNTIME_[A-Z_]*[A-Z]", "\n".join(sources)))
    options = {f"SM_RUNTIME_{field.name.upper()}" for field in dataclasses.fields(Options)}
    documented = set(re.findall(r"\bSM_RUNTIME_[A-Z_]*[A-Z]", PAGE + OPTIONS_PAGE + SERVING_PAGE))
    assert (used | options) - documented == set()
    assert documented - used - options == set()

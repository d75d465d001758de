"""docs/serving.md names every variable that serving reads, with its default, and no other."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from sm_runtime.serving import settings

PAGE = (Path(__file__).parents[3] / "docs/serving.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("## AWS's image and this one")[2].partition("What else differs")[0]
ROW = re.compile(r"^\| `(S[A-Z_]+)` \|([^|]*)\|[^|]*\|([^|]*)\|$", re.MULTILINE)
ROWS = {name: (default.strip(), here.strip()) for name, default, here in ROW.findall(TABLE)}


class Asked(dict[str, str]):
    """An environment that notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, default: object = None) -> object:  # type: ignore[override]
        self.names.add(name)
        return default


def read() -> set[str]:
    environ = Asked()
    settings.read(environ)
    return environ.names | set(settings._WITHOUT_MEANING)


def test_each_variable_has_a_row() -> None:
    assert set(ROWS) == read()
    assert len(ROWS) == len(re.findall(r"^\| `S", TABLE, re.MULTILINE))


def test_each_row_says_what_it_does_here() -> None:
    assert all(here for _, here in ROWS.values())


PLAIN = re.compile(r"`?([\w./]+)`?(:.*)?")
DEFAULTS = [(name, PLAIN.fullmatch(default)) for name, (default, _) in ROWS.items()]


@pytest.mark.parametrize(("name", "value"), [(name, found[1]) for name, found in DEFAULTS if found])
def test_what_a_row_calls_the_default_changes_nothing(name: str, value: str) -> None:
    unset = dataclasses.asdict(settings.read({}))
    given = dataclasses.asdict(settings.read({name: value}))
    changed = {key for key in unset if unset[key] != given[key]}
    assert all(given[key] == value for key in changed), changed

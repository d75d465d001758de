"""Our ``dataclass`` does what the standard one does, for frozen classes with slots."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from sm_runtime.job import dataclass as ours


def classes(module: Any) -> tuple[type, type]:
    """Return two classes that a module makes: one with positional arguments, one without."""

    @module.dataclass(frozen=True, slots=True)
    class Point:
        """A place."""

        x: int
        y: int = 2

        def sum(self) -> int:
            """Return a number."""
            return self.x + self.y

    @module.dataclass(frozen=True, slots=True, kw_only=True)
    class Named:
        """Something with a name."""

        name: str
        tags: list[str] = module.field(default_factory=list)
        """Text after a field is no part of it."""
        size: int = module.field(default=3, metadata={"unit": "bytes"})
        last: str

        @property
        def long(self) -> str:
            """Return more."""
            return self.name * 2

    return Point, Named


POINT, NAMED = classes(ours)
STANDARD_POINT, STANDARD_NAMED = classes(dataclasses)


@ours.dataclass(frozen=True, slots=True)
class Place:
    """A class that pickle finds."""

    x: int
    y: int = 2


def outcome(action: Callable[[], Any]) -> Any:
    """Return what an action returns as text, or the type of what it raises."""
    try:
        return repr(action())
    except Exception as error:
        return type(error)


USES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "positional": lambda m, p, n: p(1),
    "by name": lambda m, p, n: p(y=5, x=1),
    "a default": lambda m, p, n: n(name="a", last="z"),
    "all": lambda m, p, n: n(name="a", tags=["t"], size=1, last="z"),
    "too many": lambda m, p, n: p(1, 2, 3),
    "twice": lambda m, p, n: p(1, x=1),
    "missing": lambda m, p, n: p(),
    "missing by name": lambda m, p, n: n(name="a"),
    "unknown": lambda m, p, n: p(1, z=3),
    "positional where none is taken": lambda m, p, n: n("a", last="z"),
    "equal": lambda m, p, n: (p(1) == p(1, 2), p(1) == p(2), p(1) == (1, 2), p(1) != p(1)),
    "hash": lambda m, p, n: (hash(p(1)), len({p(1), p(1, 2), p(3)})),
    "hash of a list": lambda m, p, n: hash(n(name="a", last="z")),
    "method": lambda m, p, n: p(1).sum(),
    "property": lambda m, p, n: n(name="a", last="z").long,
    "assigned": lambda m, p, n: setattr(p(1), "x", 2),
    "deleted": lambda m, p, n: delattr(p(1), "x"),
    "no dictionary": lambda m, p, n: p(1).__dict__,
    "replaced": lambda m, p, n: m.replace(n(name="a", last="z"), size=9),
    "replaced by what there is not": lambda m, p, n: m.replace(p(1), other=9),
    "fields": lambda m, p, n: [(f.name, dict(f.metadata)) for f in m.fields(n)],
    "defaults": lambda m, p, n: m.fields(n)[2].default,
    "fields of an object": lambda m, p, n: [f.name for f in m.fields(p(1))],
    "of dataclasses: asdict": lambda m, p, n: dataclasses.asdict(n(name="a", last="z")),
    "of dataclasses: replace": lambda m, p, n: dataclasses.replace(p(1), y=7),
    "of dataclasses: fields": lambda m, p, n: [f.name for f in dataclasses.fields(n)],
    "of dataclasses: is": lambda m, p, n: dataclasses.is_dataclass(p),
    "copy": lambda m, p, n: copy.copy(p(1, 4)),
    "deep copy": lambda m, p, n: copy.deepcopy(n(name="a", tags=["b"], last="z")),
    "names": lambda m, p, n: (p.__name__, p.__qualname__, p.__doc__, p.__match_args__),
    "slots": lambda m, p, n: (p.__slots__, n.__slots__),
}


@pytest.mark.parametrize("use", USES)
def test_it_is_used_like_the_standard_one(use: str) -> None:
    found = outcome(lambda: USES[use](ours, POINT, NAMED))
    assert found == outcome(lambda: USES[use](dataclasses, STANDARD_POINT, STANDARD_NAMED))


def test_defaults_are_made_anew() -> None:
    assert NAMED(name="a", last="z").tags is not NAMED(name="a", last="z").tags


def test_a_pattern_matches_positions() -> None:
    match Place(1, 4):
        case Place(x, y):
            assert (x, y) == (1, 4)


def test_it_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Place(1, 4))) == Place(1, 4)

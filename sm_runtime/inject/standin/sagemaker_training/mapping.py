"""Mappings as arguments and as variables, split, and objects that are mappings."""

from __future__ import annotations

import collections.abc
import json
from collections import namedtuple
from typing import Any, Iterable, Iterator, Mapping

SplitResultSpec = namedtuple("SplitResultSpec", "included excluded")


def to_env_vars(mapping: Mapping[str, Any]) -> dict[str, str]:
    """Return a variable ``SM_<KEY>`` for each key; what is no text is JSON."""
    return {f"SM_{key}".upper() if key else "": _text(value) for key, value in mapping.items()}


def to_cmd_args(mapping: Mapping[str, Any]) -> list[str]:
    """Return an option and a value for each key, in the order of the keys."""
    found: list[str] = []
    for key in sorted(mapping):
        name, value = _argument(key), mapping[key]
        found.append(f"--{name}" if len(name) > 1 else f"-{name}" if name else "")
        if hasattr(value, "items"):
            found.append(",".join(f"{k}={v}" for k, v in sorted(value.items())))
        else:
            found.append(_argument(value))
    return found


def split_by_criteria(
    dictionary: Mapping[str, Any], keys: Iterable[str] | None = None, prefix: str | None = None
) -> SplitResultSpec:
    """Return what has one of ``keys`` or begins with ``prefix``, and what does not."""
    wanted = set(keys or ())
    included = {
        key: value
        for key, value in dictionary.items()
        if key in wanted or (prefix and key.startswith(prefix))
    }
    excluded = {key: value for key, value in dictionary.items() if key not in included}
    return SplitResultSpec(included, excluded)


class MappingMixin(collections.abc.Mapping):  # type: ignore[type-arg]
    """A mapping of an object's public properties."""

    def properties(self) -> list[str]:
        """Return the names of the properties."""
        return [name for name in dir(type(self)) if self._is_property(name)]

    def _is_property(self, name: str) -> bool:
        return isinstance(getattr(type(self), name, None), property)

    def __getitem__(self, name: str) -> Any:
        if not self._is_property(name):
            raise KeyError(f"Trying to access non property {name}")
        return getattr(self, name)

    def __len__(self) -> int:
        return len(self.properties())

    def __iter__(self) -> Iterator[str]:
        return iter(self.properties())

    def __str__(self) -> str:
        return str(dict(self))


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin1")
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _argument(value: Any) -> str:
    if value is None:
        return ""
    return value.decode("latin1") if isinstance(value, bytes) else str(value)

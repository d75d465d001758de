"""Media types, as Content-Type and Accept headers name them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"
_USUAL = 200
"""Characters of a header that is remembered."""


@dataclass(frozen=True, slots=True)
class MediaType:
    """One media type of a header."""

    name: str
    """In lower case, as in ``text/csv``."""
    parameters: Mapping[str, str]
    quality: float = 1.0
    """How much a client wants it, from 0 to 1; what is no number is 1."""


def media_types(header: str) -> tuple[MediaType, ...]:
    """Return the media types of a Content-Type or Accept header, in their order."""
    # Clients send the same few again and again; what is long is not kept.
    return _remembered(header) if len(header) <= _USUAL else _media_types(header)


def _media_types(header: str) -> tuple[MediaType, ...]:
    found = []
    for part in header.split(","):
        name, *parameters = part.split(";")
        if name.strip():
            pairs = (one.partition("=") for one in parameters)
            given = {key.strip().lower(): value.strip(' \t"') for key, _, value in pairs}
            found.append(MediaType(name.strip().lower(), given, _quality(given.get("q", "1"))))
    return tuple(found)


_remembered = lru_cache(256)(_media_types)


def _quality(text: str) -> float:
    return min(float(text), 1.0) if re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", text) else 1.0


def base_type(header: str) -> str:
    """Return the first media type of a header without its parameters, in lower case."""
    return header.partition(";")[0].strip().lower()


def plain_type(value: str) -> str:
    """Return a media type without a charset that says nothing new, as handlers compare it."""
    parameters = value.partition(";")[2].strip().lower()
    known = ("charset=utf-8", 'charset="utf-8"', "")
    return base_type(value) if parameters in known else value.strip()


def preferred(header: str, default: str) -> str:
    """Return the media type that an Accept header wants most; ``default`` where it takes any."""
    wanted = [one for one in media_types(header) if one.quality > 0]
    if not wanted:
        return default
    best = max(wanted, key=lambda one: one.quality)
    if best.name in ("*/*", "application/*"):
        return default
    more = [f"{key}={value}" for key, value in best.parameters.items() if key != "q"]
    return plain_type(";".join([best.name, *more]))

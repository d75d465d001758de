"""Reads the two kinds of manifests: lists of objects, and lists of examples.

The formats are those of the AWS API reference (``S3DataSource``) and of the SageMaker guide
("Augmented manifest files").
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from sm_runtime.job import location
from sm_runtime.job.errors import DataError
from sm_runtime.storage import Origin

_BUFFER_BYTES = 1 << 18
_MAX_LINE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One attribute of an example: a text, or the URI of the object that holds it."""

    name: str
    value: str
    is_reference: bool = False
    content: object = None
    """The value as JSON has it."""


def entries(text: bytes | str, where: str) -> list[str]:
    """Return the URIs of the objects that a manifest lists, in its order.

    ``where`` begins the sentence of the DataError that is raised for what is no manifest.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON document: {error}") from None
    head = document[0] if isinstance(document, list) and document else None
    prefix = head.get("prefix") if isinstance(head, dict) else None
    if not isinstance(prefix, str) or not prefix:
        raise DataError(
            f'{where} is no manifest: a list is needed whose first element is {{"prefix": "s3://..."}}'
        )
    if not _is_location(prefix):
        raise DataError(f"{where}: the prefix {prefix!r} must begin with s3:// or file:///")
    for position, entry in enumerate(document[1:], 1):
        if not isinstance(entry, str) or not entry:
            raise DataError(f"{where}: element {position} must be a key, not {_short(entry)}")
    if len(document) < 2:
        raise DataError(f"{where} lists no objects: keys are needed after the prefix")
    return [prefix + entry for entry in document[1:]]


def prefix(text: bytes | str) -> str:
    """Return the prefix of a manifest that ``entries`` has accepted."""
    return str(json.loads(text)[0]["prefix"])


def augmented(
    lines: Iterable[bytes], names: tuple[str, ...], where: str
) -> Iterator[tuple[Attribute, ...]]:
    """Yield the attributes ``names`` of each line of an augmented manifest, in that order.

    A value under a name that ends in ``-ref`` is the URI of an object; another one is sent as
    text: a string as it is, anything else as JSON. Raises DataError naming the line.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            example = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: line {number} is no JSON: {error}") from None
        if not isinstance(example, dict):
            raise DataError(f"{where}: line {number} must be an object, not {_short(example)}")
        yield tuple(_attribute(example, name, f"{where}: line {number}") for name in names)


def _attribute(example: dict[str, object], name: str, where: str) -> Attribute:
    if name not in example:
        raise DataError(f"{where} has no attribute {name!r}, only {', '.join(map(repr, example))}")
    value = example[name]
    if not name.endswith("-ref"):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return Attribute(name=name, value=text, content=value)
    if not isinstance(value, str) or not _is_location(value):
        raise DataError(f"{where}: {name} must be the URI of an object, not {_short(value)}")
    return Attribute(name=name, value=value, is_reference=True, content=value)


def _is_location(uri: str) -> bool:
    try:
        location.parse(uri)
    except ValueError:
        return False
    return True


def content(origin: Origin, uri: str) -> bytes:
    """Return all bytes of the object at ``uri``."""
    return b"".join(_pieces(origin, uri))


def lines(origin: Origin, uri: str) -> Iterator[bytes]:
    """Yield the lines of the object at ``uri`` without their ends, a buffer at a time."""
    rest = b""
    for piece in chain(_pieces(origin, uri), (b"\n",)):
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise DataError(f"{uri} has a line of more than {_MAX_LINE_BYTES >> 20} MiB")
        yield from whole


def _pieces(origin: Origin, uri: str) -> Iterator[bytes]:
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with origin.open(origin.stat(uri)) as body:
        while count := body.readinto(buffer):
            yield bytes(buffer[:count])


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."

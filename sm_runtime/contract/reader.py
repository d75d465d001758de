"""Reads what people wrote: JSON documents and single values, with every problem collected.

A problem is one sentence: ``<file>: <key path>: <what is wrong, with the value>``.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping

from sm_runtime.job import location
from sm_runtime.job.dataclass import dataclass, field
from sm_runtime.job.model import Json
from sm_runtime.job.secrets import MASK, hidden, is_secret, secret_name


class _Absent:
    """What a field holds that is not there."""


ABSENT: Json = _Absent()
"""The value of a field that is not there."""

LARGEST = 2**31 - 1
"""The largest whole number of the API's type ``integer``."""
LONGEST_SECONDS = LARGEST
"""The longest time that is taken, 68 years: what more can hardly be meant."""
_DEEPEST = 200
_BOMS = (
    (codecs.BOM_UTF8, "UTF-8"),
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_TRUE = frozenset({"true", "True"})
_FALSE = frozenset({"false", "False"})


@dataclass(frozen=True, slots=True)
class Document:
    """The bytes of a configuration file, and what to call it in messages."""

    path: str
    data: bytes | None
    """None: it is there and cannot be read, which is a problem of its own."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found while reading; problems end a job, warnings and notes do not."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Field:
    """A value, where it stands, and where to put what is wrong with it."""

    file: str
    key: str
    value: Json
    findings: Findings

    @property
    def present(self) -> bool:
        """Whether there is a value; ``null`` is none."""
        return self.value is not ABSENT and self.value is not None

    @property
    def place(self) -> str:
        """The file and the key path."""
        return f"{self.file}: {self.key}" if self.key else self.file

    @property
    def spoiled(self) -> bool:
        """Whether something is wrong here, or with a part of this."""
        place = self.place
        starts = (f"{place}:", f"{place}.", f"{place}[")
        return any(problem.startswith(starts) for problem in self.findings.problems)

    def wrong(self, what: str) -> None:
        """Note that ``what`` is wrong here."""
        self.findings.problems.append(f"{self.place}: {what}")

    def must(self, be: str) -> None:
        """Note that the value is not what it must be."""
        self.wrong(f"must be {be}, not {shown(self.key, self.value)}")

    def with_value(self, value: Json) -> Field:
        """Return this field with another value."""
        return Field(self.file, self.key, value, self.findings)

    def fields(self, known: Iterable[str] | None = None) -> dict[str, Field]:
        """Return the fields of an object; a key that is not among ``known`` is a problem."""
        if not self.present:
            return {}
        if not isinstance(self.value, dict):
            self.must("an object")
            return {}
        names = None if known is None else sorted(known)
        for name in self.value:
            if names is not None and name not in names:
                self.wrong(f"unknown key {name!r}{closest(name, names)}")
        return {name: self._part(name) for name in self.value}

    def get(self, name: str) -> Field:
        """Return the field ``name`` of an object; absent where there is none."""
        return self._part(name)

    def items(self) -> list[Field]:
        """Return the fields of a list."""
        if not self.present:
            return []
        if not isinstance(self.value, list):
            self.must("a list")
            return []
        return [
            Field(self.file, f"{self.key}[{i}]", value, self.findings)
            for i, value in enumerate(self.value)
        ]

    def text(self, default: str | None = None, *, choices: Iterable[str] = ()) -> str | None:
        """Return a string, one of ``choices`` if there are any."""
        if not self.present:
            return default
        allowed = tuple(choices)
        if not isinstance(self.value, str):
            self.must(one_of(allowed) if allowed else "a string")
            return default
        if allowed and self.value not in allowed:
            self.must(one_of(allowed))
            return default
        reason = unfit(self.value)
        if reason:
            self.wrong(f"{reason}: {shown(self.key, self.value)}")
            return default
        return self.value

    def texts(self) -> tuple[str, ...]:
        """Return the strings of a list of strings."""
        found = []
        for item in self.items():
            if item.present:
                found.append(item.text())
            else:
                item.must("a string")
        return tuple(text for text in found if text is not None)

    def flag(self) -> bool:
        """Return a boolean; the texts ``true``, ``True``, ``false`` and ``False`` count too."""
        if not self.present:
            return False
        if isinstance(self.value, bool):
            return self.value
        if isinstance(self.value, str) and self.value in _TRUE | _FALSE:
            return self.value in _TRUE
        self.must("true or false")
        return False

    def integer(self, *, minimum: int, maximum: int = LARGEST) -> int | None:
        """Return a whole number from ``minimum`` to ``maximum``; its text counts too."""
        if not self.present:
            return None
        value = self.value
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,100}\s*", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            self.must(f"a whole number of at least {minimum}")
            return None
        if value > maximum:
            self.must(f"a whole number of at most {maximum}")
            return None
        return value

    def seconds(self, minimum: float = 0) -> float | None:
        """Return a number from ``minimum`` to LONGEST_SECONDS; its text counts too."""
        if not self.present:
            return None
        try:
            found = math.nan if isinstance(self.value, bool) else float(self.value)
        except OverflowError:  # a whole number that no float can hold
            found = math.inf if self.value > 0 else -math.inf
        except (TypeError, ValueError):
            found = math.nan
        if math.isnan(found) or found < minimum:
            self.must(f"a number of seconds of at least {minimum:g}")
            return None
        if found > LONGEST_SECONDS:
            self.must(f"a number of seconds of at most {LONGEST_SECONDS}")
            return None
        return found

    def is_object(self) -> bool:
        """Whether there is an object; if not, that is a problem."""
        if not isinstance(self.value, dict):
            self.must("an object")
        return isinstance(self.value, dict)

    def required(self, name: str) -> str | None:
        """Return the string at ``name``, which must be there."""
        part = self.get(name)
        if not part.present or part.value == "":
            part.wrong("is missing")
            return None
        return part.text()

    def uri(self) -> str | None:
        """Return an ``s3://`` or ``file://`` URI."""
        uri = self.text()
        if uri is None:
            return None
        try:
            location.parse(uri)
        except ValueError as error:
            if "credentials" in str(error):  # then the value is not shown
                self.wrong(str(error))
            else:
                self.must("s3://bucket/prefix or file:///path")
            return None
        return uri

    def required_uri(self, name: str) -> str | None:
        """Return the URI at ``name``, which must be there."""
        return None if self.required(name) is None else self.get(name).uri()

    def absolute_path(self, default: str) -> str:
        """Return the path of a folder of the container."""
        path = self.text(default) or default
        if not path.startswith("/"):
            self.must("an absolute path")
        return path

    def _part(self, name: str) -> Field:
        value = self.value.get(name, ABSENT) if isinstance(self.value, Mapping) else ABSENT
        return Field(self.file, f"{self.key}.{name}" if self.key else name, value, self.findings)


def load(document: Document | None, path: str, findings: Findings) -> Field:
    """Return the root field of ``document``, which must be a JSON object; absent if it is not."""
    root = Field(document.path if document else path, "", ABSENT, findings)
    if document is None or document.data is None:
        return root
    before = len(findings.problems)
    value = _decode(document.data, root)
    if len(findings.problems) > before:
        return root
    if not isinstance(value, dict):
        # Not even the value of a wrong document is shown: nothing says that it is no secret.
        root.wrong(f"must be a JSON object, not {_kind(value)}")
        return root
    if not shallow(value):
        root.wrong(f"is nested more than {_DEEPEST} levels deep")
        return root
    return root.with_value(value)


def shallow(value: Json, left: int = _DEEPEST) -> bool:
    """Return whether ``value`` is nested so little that it can be written as JSON anywhere."""
    if isinstance(value, dict):
        return left > 0 and all(shallow(item, left - 1) for item in value.values())
    if isinstance(value, list):
        return left > 0 and all(shallow(item, left - 1) for item in value)
    return True


def unfit(text: str) -> str | None:
    """Return why ``text`` can be no argument, variable or file name of a process, if so."""
    if "\0" in text:
        return "holds a NUL character, which no argument or variable of a process can"
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which no encoding can express"
    return None


def shown(key: str, value: Json) -> str:
    """Return ``value`` as it may be shown in a message: short, and masked if it is a secret."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return _kind(value)
    if secret_name(key) or is_secret(key, str(value)):
        return f"'{MASK}'"
    text = hidden(repr(value))  # before it is cut: a part of a secret is known by less
    return text if len(text) <= 100 else f"{text[:97]}..."


def closest(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` where one of ``names`` is like ``name``, else nothing."""
    from difflib import get_close_matches

    folded = {known.lower(): known for known in names}
    found = get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[found[0]]!r}?" if found else ""


def one_of(names: Iterable[str]) -> str:
    """Return ``'a', 'b' or 'c'``."""
    *most, last = [repr(name) for name in names]
    return f"{', '.join(most)} or {last}" if most else last


def _decode(data: bytes, root: Field) -> Json:
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            root.wrong(
                f"invalid JSON at line 1 column 1: begins with the byte order mark of {encoding};"
                " save it as UTF-8 without one"
            )
            return ABSENT
    if not data.strip():
        root.wrong("is empty, at line 1 column 1; it must hold a JSON object, at least {}")
        return ABSENT
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_pairs(root))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        root.wrong(
            f"invalid JSON at line {line} column {column}: byte 0x{data[error.start]:02x} is not"
            " UTF-8"
        )
    except json.JSONDecodeError as error:
        root.wrong(f"invalid JSON at line {error.lineno} column {error.colno}: {error.msg}")
    except ValueError:  # json raises no other: Python's limit against numbers that take minutes
        root.wrong("holds a whole number of more digits than can be read (4300)")
    except RecursionError:
        root.wrong(f"is nested more than {_DEEPEST} levels deep")
    return ABSENT


def _pairs(root: Field) -> Callable[[list[tuple[str, Json]]], dict[str, Json]]:
    def collect(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            names = ", ".join(repr(key) for key in twice)
            root.findings.warnings.append(
                f"{root.file}: the key {names} stands there more than once: the last one counts"
            )
        return found

    return collect


def _kind(value: Json) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return "a string" if isinstance(value, str) else "a number"

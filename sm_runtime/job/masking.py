"""Masks secrets in every text that the runtime writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from sm_runtime.job.secrets import hidden, spans

_SAFE = re.compile(r"[^A-Za-z0-9_.~-]")
_LINE_ENDS = re.compile(r"\\r|\\n|[\r\n]")
_LINE_CHARACTERS = 8
"""A shorter line of a secret may be one of any text."""


class Mask:
    """A function from a text to the same text without the secrets.

    It knows the values that it has learnt, and what looks like a secret by its shape or its name.
    """

    def __init__(self) -> None:
        self._spellings: tuple[str, ...] = ()

    def learn(self, secrets: Iterable[str]) -> None:
        """Mask these values, too, in all their usual spellings; replaces what was learnt before."""
        found: set[str] = set()
        for secret in secrets:
            found |= _spellings(secret)
            lines = [line.strip() for line in _LINE_ENDS.split(secret)]
            if len(lines) > 1:
                for line in lines:
                    found |= _spellings(line) if len(line) >= _LINE_CHARACTERS else set()
        self._spellings = tuple(sorted(filter(None, found)))

    def __call__(self, text: str) -> str:
        """Return ``text`` with every secret replaced by ``***``."""
        return hidden(text, sorted((*spans(text), *self._learnt(text))))

    def _learnt(self, text: str) -> Iterator[tuple[int, int]]:
        for spelling in self._spellings:
            position = text.find(spelling)
            while position >= 0:
                end = position + len(spelling)
                yield position, end
                position = text.find(spelling, end)
            yield from _cut(text, spelling)


def _spellings(secret: str) -> set[str]:
    """Return how a secret is written in JSON, in Python, in a shell, in a URL, and as it is."""
    as_json = json.dumps(secret)
    return {
        secret,
        as_json[1:-1],
        json.dumps(as_json)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        secret.replace("'", "'\"'\"'"),
        _SAFE.sub(_quoted, secret),
    }


def _quoted(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def _cut(text: str, spelling: str) -> Iterator[tuple[int, int]]:
    """Yield where a part of a secret is left: cut by us, or by the ends of ``text``."""
    least = min(8, max(4, len(spelling) // 2))
    if len(spelling) <= least:
        return
    head, tail = spelling[:least], spelling[-least:]
    # The last part of it, at the beginning of the text.
    position = text.find(tail, 0, len(spelling))
    while position >= 0:
        end = position + least
        if spelling.endswith(text[:end]):
            yield 0, end
            break
        position = text.find(tail, position + 1, len(spelling))
    # The first part of it, at the end of the text or before an ellipsis.
    position = text.find(head)
    while position >= 0:
        end = position + least
        while (
            end < len(text)
            and end - position < len(spelling)
            and text[end] == spelling[end - position]
        ):
            end += 1
        if end == len(text) or text.startswith(("...", " [...] "), end):
            yield position, end
        position = text.find(head, end)

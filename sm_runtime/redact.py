"""Masks secrets in every text that the runtime writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

MASK = "***"

_PATTERNS = (
    r"(?P<aws>\b(?:AKIA|ASIA)[A-Z0-9]{16}\b)"
    r"|(?P<known>\b(?:hf_|gh[pousr]_|github_pat_|glpat-|xox[abps]-|sk-)[A-Za-z0-9_-]{16,})"
    r"|(?P<url>(?<=://)[^/\s:@]*:[^/\s@]+(?=@))"
    r"|(?P<named>(?i:password|passwd|secret|token|api_?key|access_?key)=)(?P<value>[^\s&,;'\"]+)"
)


class Mask:
    """A function from a text to the same text without the secrets.

    It knows the values that it was told, the shapes of AWS, GitHub, GitLab, Slack and Hugging Face
    keys, passwords in URLs, and ``password=...``.
    """

    def __init__(self) -> None:
        self._values: re.Pattern[str] | None = None

    def learn(self, secrets: Iterable[str]) -> None:
        """Mask these values, too, in all their usual spellings; replaces what was learnt before."""
        spellings: set[str] = set()
        for secret in secrets:
            spellings |= {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}
        # The longest first: a secret may be a part of another one.
        ordered = sorted((s for s in spellings if s), key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def __call__(self, text: str) -> str:
        """Return ``text`` with every secret replaced by ``***``."""
        if self._values:
            text = self._values.sub(MASK, text)
        return re.sub(_PATTERNS, _masked, text)


def _masked(match: re.Match[str]) -> str:
    if match["url"]:
        user = match["url"].partition(":")[0]
        return f"{user}:{MASK}"
    return (match["named"] or "") + MASK

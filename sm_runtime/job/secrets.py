"""What looks like a secret, by its name and its value, and the mask that hides it in all output.

Nothing here is certain: a name says what people mean by it, and a value that is no secret (a
number, a path) stays readable. The rules lean to hiding too much rather than too little, but for
what every text has: hashes, identifiers, addresses, names of files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, pairwise
from typing import TYPE_CHECKING

from sm_runtime.job import secret_shapes

if TYPE_CHECKING:
    from sm_runtime.job.model import Json


MASK = "***"

_WORDS = frozenset({
    "password", "pass", "passcode", "passwd", "passphrase", "pwd", "secret", "token", "cred",
    "creds", "credential", "credentials", "apikey", "accesskey", "secretkey", "privatekey",
    "webhook", "cookie", "jwt", "bearer",
})  # fmt: skip
_ENDINGS = (
    *("password", "passwd", "passphrase", "pwd", "secret", "apikey", "apitoken", "accesstoken"),
    *("authtoken", "sessiontoken", "refreshtoken", "securitytoken"),
)
"""Words that were written together with others."""
_KEY_KINDS = frozenset({
    "api", "access", "secret", "private", "encryption", "signing", "auth", "account", "storage",
    "ssh", "license", "subscription", "service", "shared", "master",
})  # fmt: skip
_WEAK = frozenset({"key", "auth", "session", "pat", "sas"})
"""Words whose value is a secret where it looks random."""
_KNOWN = frozenset(
    {
        *("id", "ids", "name", "names", "public", "kms", "hash", "sha", "md", "digest", "version"),
        *("checksum", "fingerprint", "prefix", "length"),
    }
)
"""Words beside these whose value may look random and be known to all."""
_SIGNATURES = frozenset({"sig", "signature"})
_OF_TEXT = frozenset({
    "pad", "eos", "bos", "unk", "cls", "sep", "mask", "start", "end", "stop", "special",
    "image", "prompt", "placeholder", "separator", "begin", "class", "next", "per", "max",
    "min", "initializer", "decoder", "forced",
})  # fmt: skip
"""What comes before ``token`` where that is a piece of text: ``pad_token``."""
_ABOUT = frozenset({
    "type", "types", "level", "length", "count", "counts", "dim", "dropout", "limit", "ids",
    "classification", "embedding", "embeddings", "budget", "merging", "pruning", "ratio",
    "size", "strategy", "index", "loss", "weight", "weights", "shift", "labeling", "mixing",
})  # fmt: skip
"""What comes after ``token`` where that is one, too: ``token_type``."""
_PLACES = frozenset({"file", "path", "dir", "directory", "folder", "uri", "arn", "sock"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_PLAIN_PATH = re.compile(r"(?:~|\.{1,2})?(?:/[a-z0-9._-]+)+/?")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def words(name: str) -> list[str]:
    """Return the words of ``name`` in lower case: ``hfToken`` and ``HF_TOKEN`` have two."""
    return [word.lower() for word in _WORD.findall(name)]


def secret_name(name: str) -> bool:
    """Return whether ``name`` says that its value is a secret, whatever the value is."""
    parts = words(name)
    pairs = list(pairwise(parts))
    if any(kind in _KEY_KINDS and key == "key" for kind, key in pairs):
        return True
    of_text = any(
        (second == "token" and first in _OF_TEXT) or (first == "token" and second in _ABOUT)
        for first, second in pairs
    )
    found = {part for part in parts if part in _WORDS} - ({"token"} if of_text else set())
    return bool(found) or parts[-1:] == ["pw"] or any(part.endswith(_ENDINGS) for part in parts)


def is_secret(name: str, value: str) -> bool:
    """Return whether ``value`` is to be hidden, given the name that it goes by."""
    # PWD is what every shell calls its working folder; `pwd` is a usual name for a password.
    if len(value) < 4 or name == "PWD" or _is_plain(value) or _is_place(name, value):
        return False
    if secret_name(name):
        return True
    parts = set(words(name))
    if parts & _SIGNATURES and _looks_signed(value):
        return True
    return bool(parts & _WEAK) and not parts & _KNOWN and _looks_random(value)


def secrets_in(name: str, value: Json) -> Iterator[str]:
    """Yield the secrets that ``value`` holds, as far down as it is JSON or text that has parts."""
    for key, text in _leaves(name, value):
        if is_secret(key, text):
            yield text
        inner = _decoded(text)
        if inner is not None:
            yield from secrets_in(key, inner)
        else:
            yield from (text[start:end] for start, end in spans(text))


def spans(text: str) -> list[tuple[int, int]]:
    """Return the beginning and the end of each secret in ``text``: by its shape, or by its name."""
    return sorted(chain(secret_shapes.spans(text), _named(text)))


def hidden(text: str, found: Iterable[tuple[int, int]] | None = None) -> str:
    """Return ``text`` with ``***`` for each secret; these are where ``found`` says."""
    parts: list[str] = []
    position = 0
    for start, end in spans(text) if found is None else found:
        if start > position or not parts:
            parts += [text[position:start], MASK]
        position = max(position, end)
    return "".join((*parts, text[position:]))


def _leaves(name: str, value: Json) -> Iterator[tuple[str, str]]:
    """Yield each text in ``value`` with the name that it goes by."""
    left = [(name, value)]
    while left:
        key, item = left.pop()
        if isinstance(item, str):
            yield key, item
        elif isinstance(item, Mapping):
            # What is inside of a secret is secret, whatever it is called there.
            inside = secret_name(key)
            left += [(key if inside else str(inner), each) for inner, each in item.items()]
        elif isinstance(item, Iterable) and not isinstance(item, bytes):
            left += [(key, each) for each in item]


def _decoded(text: str) -> Json:
    """Return what JSON ``text`` holds, where that has parts or is text; None for other text."""
    if text.lstrip()[:1] not in ("{", "[", '"'):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | list | str) else None


_HINT = re.compile("(?i:pass|pwd|pw|secret|token|cred|key|auth|cookie|sig|jwt|webhook|session|sas)")
_NAME = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
_NAME_CHARACTERS = 128
_REST_OF_NAME = re.compile(r"[A-Za-z0-9_.-]*")
_QUOTE = r"\\{0,3}[\"'`]"
_ASSIGNED = re.compile(
    rf"(?P<close>{_QUOTE})?\]?"
    r"(?P<by>\s{0,20}(?:===?|=>|:=|::?|=)\s{0,20}|\s{0,2},\s{0,2}|\s{1,20})"
    rf"[\[({{]{{0,2}}(?:[bBuUrRfF]{{0,2}}(?P<quote>{_QUOTE}))?"
)
"""What is between a name and its value, in a shell, Python, JSON, YAML, a header, a URL."""
_BARE = re.compile(r"[^\s&,;'\"]+")
_TOKEN = re.compile(r"(?=[A-Za-z]{0,100}[0-9_+/=~!@#$%^*])[A-Za-z0-9_+/=.~!@#$%^*-]{6,}")
"""A value that is no word of a sentence."""
_LINE = re.compile(r"[^\"'\r\n]{4,}")
_HEADERS = ("authorization", "cookie")
_SCHEME = re.compile(r"(?i:bearer|basic|token|digest|negotiate|apikey|bot|aws4-|hmac|key)[ :=-]")
_CODE = re.compile(
    r"(?:self|cls|args|opts?|options|config|cfg|conf|settings|params|flags|os|environ|getenv|kwargs)"
    r"[.\[(]|[$<{]|%\("
)
"""Where a value is read from, in a line of a source or of a template."""
_QUOTED_CHARACTERS = 2**13
"""How far the end of a quoted value is looked for."""
_VALUE_CHARACTERS = 2**10
"""How much of another value decides about it."""


def _named(text: str) -> Iterator[tuple[int, int]]:
    """Yield where values are that the name before them says are secret."""
    done = 0
    for hint in _HINT.finditer(text):
        if hint.start() < done:
            continue
        rest = _REST_OF_NAME.match(text, hint.end())
        done = rest.end() if rest else hint.end()
        assigned = _ASSIGNED.match(text, done)
        if assigned:
            before = text[max(0, hint.start() - _NAME_CHARACTERS) : hint.start()]
            start = hint.start() - len(before) + len(before.rstrip(_NAME))
            value = _value(text, start, text[start:done][-_NAME_CHARACTERS:], assigned)
            if value:
                yield value
                done = value[1]


def _value(text: str, start: int, name: str, assigned: re.Match[str]) -> tuple[int, int] | None:
    """Return where the value of ``name`` is, which begins at ``start``, if that is a secret."""
    by, quote, close = assigned["by"].strip(), assigned["quote"], assigned["close"] or ""
    is_option, word = name.startswith("-"), name.strip("-").lower()
    if by == ",":  # a pair, or a list of arguments
        opened = start - len(close)
        is_pair = text[opened:start] == close and text[opened - 1 : opened] == "("
        if not (close and quote and (is_pair or is_option)):
            return None
    elif not by and not is_option and not quote:
        return None
    first = assigned.end()
    pattern = _TOKEN if by == ":" and not close else _BARE
    if word.endswith(_HEADERS) and by == ":" and not quote:
        pattern = _LINE
    # What is longer is looked at no further than that: it is part of one value many times.
    most = first + _VALUE_CHARACTERS
    found = None if quote else pattern.match(text, first, most)
    end = _closing(text, first, quote) if quote else found.end() if found else None
    value = text[first:end].rstrip("\\") if end else ""
    if not value or value == word or _CODE.match(value) or (not by and value.startswith("-")):
        return None
    if not quote and _is_source(text, start):
        return None
    # '/etc/passwd': Permission denied
    if close and not quote and text[start - 1 : start] == "/" and not _TOKEN.match(value):
        return None
    # In a sentence a password is quoted, and much else.
    if not (by or is_option or word.endswith("password") or _looks_random(value)):
        return None
    if not _is_named(name, word, value):
        return None
    if end == most and (whole := pattern.match(text, first)):
        return first, whole.end()
    return first, first + len(value)


def _is_source(text: str, position: int) -> bool:
    """Whether a line of a program stands there: a traceback shows it below the name of its file."""
    line = text.rfind("\n", max(0, position - _VALUE_CHARACTERS), position)
    above = text[text.rfind("\n", max(0, line - _VALUE_CHARACTERS), line) + 1 : max(0, line)]
    return line >= 0 and above.lstrip(" |+").startswith('File "')


def _is_named(name: str, word: str, value: str) -> bool:
    if word.endswith("authorization"):
        return bool(_SCHEME.match(value)) or _looks_random(value)
    if word in ("token", "pass") and not _TOKEN.match(value):
        return False  # of a text, or one of several passes
    return is_secret(name, value) or is_secret(name, value.rstrip(")]}>."))


def _closing(text: str, first: int, quote: str) -> int | None:
    """Return where the text ends that was opened by ``quote``, whose backslashes say how deep."""
    depth, position = len(quote) - 1, first
    while (position := text.find(quote[-1], position, first + _QUOTED_CHARACTERS)) >= 0:
        before = text[first:position]
        escapes = len(before) - len(before.rstrip("\\"))
        if escapes % 2 == 0 if depth == 0 else escapes <= depth:
            return position - (escapes if depth else 0)
        position += 1
    return None


def _is_plain(value: str) -> bool:
    """Whether ``value`` is a number, a boolean or nothing: hiding it would garble every log."""
    if value.strip().lower() in {"true", "false", "null", "none"}:
        return True
    try:
        float(value)
    except ValueError:
        return False
    return True


def _is_place(name: str, value: str) -> bool:
    """Whether ``value`` says where a secret is, and is none itself."""
    if value.startswith(("file:", "secretsmanager:")):
        return True
    if value.startswith(("/", "~/", "./", "../", "arn:", "http://", "https://")):
        # A secret in base64 may begin with a slash too; a usual path has no capital letter.
        return (words(name) or [""])[-1] in _PLACES or bool(_PLAIN_PATH.fullmatch(value))
    return False


def _looks_random(value: str) -> bool:
    """Whether ``value`` is of one piece, with a long part that has letters and digits."""
    if len(value) < 16 or not re.fullmatch(r"[A-Za-z0-9+/=_~%-]+", value) or value[0] == "/":
        return False
    return not _UUID.fullmatch(value) and any(
        len(part) >= 12 and re.search("[0-9]", part) and re.search("[A-Za-z]", part)
        for part in re.split("[^A-Za-z0-9+]", value)
    )


def _looks_signed(value: str) -> bool:
    return len(value) >= 16 and bool(re.fullmatch(r"(?=\D*[0-9%+/=])[A-Za-z0-9+/=_~%-]+", value))


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
            found |= spellings(secret)
            lines = [line.strip() for line in _LINE_ENDS.split(secret)]
            if len(lines) > 1:
                for line in lines:
                    found |= spellings(line) if len(line) >= _LINE_CHARACTERS else set()
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


def spellings(secret: str) -> set[str]:
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

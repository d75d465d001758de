"""What looks like a secret, by its name and its value.

Nothing here is certain: a name says what people mean by it, and a value that is no secret (a
number, a path) stays readable. The rules lean to hiding too much rather than too little.
"""

from __future__ import annotations

import re
from itertools import pairwise

MASK = "***"

_WORDS = frozenset(
    {
        "password",
        "pass",
        "passcode",
        "passwd",
        "passphrase",
        "pwd",
        "secret",
        "token",
        "cred",
        "creds",
        "credential",
        "credentials",
        "apikey",
        "accesskey",
        "secretkey",
        "privatekey",
    }
)
_KEY_KINDS = frozenset(
    {
        "api",
        "access",
        "secret",
        "private",
        "encryption",
        "signing",
        "auth",
        "account",
        "storage",
        "ssh",
        "license",
    }
)
_PLACES = frozenset({"file", "path", "dir", "directory", "folder", "uri", "arn", "sock"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_PLAIN_PATH = re.compile(r"(?:~|\.{1,2})?(?:/[a-z0-9._-]+)+/?")
_URL_PASSWORD = re.compile(r"://[^/\s:@]*:([^/\s@]+)@")


def words(name: str) -> list[str]:
    """Return the words of ``name`` in lower case: ``hfToken`` and ``HF_TOKEN`` have two."""
    return [word.lower() for word in _WORD.findall(name)]


def secret_name(name: str) -> bool:
    """Return whether ``name`` says that its value is a secret, whatever the value is."""
    parts = words(name)
    return any(
        part in _WORDS or part.endswith(("password", "passwd", "passphrase")) for part in parts
    ) or any(kind in _KEY_KINDS and key == "key" for kind, key in pairwise(parts))


def is_secret(name: str, value: str) -> bool:
    """Return whether ``value`` is to be hidden, given the name that it goes by."""
    # PWD is what every shell calls its working folder; `pwd` is a usual name for a password.
    if len(value) < 4 or name == "PWD" or _is_plain(value) or _is_place(name, value):
        return False
    if secret_name(name):
        return True
    return not {"key", "auth"}.isdisjoint(words(name)) and _looks_random(value)


def url_passwords(value: str) -> list[str]:
    """Return the passwords in ``scheme://user:password@host`` inside ``value``."""
    return [found for found in _URL_PASSWORD.findall(value) if len(found) >= 4]


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
    return (
        len(value) >= 16
        and not re.search(r"\s", value)
        and not value.startswith("/")
        and bool(re.search(r"[0-9]", value))
        and bool(re.search(r"[A-Za-z]", value))
    )

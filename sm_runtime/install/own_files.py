"""The files of this package as pip has installed them, and which other package claims them.

pip overwrites the files of another package silently, and has no option to leave out a package that
a requirement depends on. What a package with the same command or module names has replaced is
therefore put back.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from sm_runtime.install.requirements import OWN_NAME
from sm_runtime.job.errors import InstallError

log = logging.getLogger(__name__)

_COMMANDS = ("train", "sm-runtime")
_MARKS = (b"sm_runtime", b"sm-runtime")
_HEAD_BYTES = 8192
_NAMED = 5


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Put back, at the end of the block, the files of this package that it altered or removed."""
    before = _contents()
    try:
        yield
    finally:
        _put_back(before)


def problems(path: str | None) -> list[str]:
    """Return a sentence for each command of this package that another one has taken or removed.

    ``path`` is that of the environment: what it finds as ``train`` is what platforms start.
    """
    import shutil

    again = f"install {OWN_NAME} again (see docs/migration.md)"
    found = []
    train = shutil.which("train", path=path)
    if train is not None and not _is_ours(train):
        owner = _owner(train)
        whose = f"is that of {owner}" if owner else f"is not that of {OWN_NAME}"
        first = "uninstall that" if owner else "remove it"
        found.append(f"the command train on PATH, {train}, {whose}: {first}, then {again}")
    for script in _scripts():
        if not os.path.exists(script):
            found.append(f"{script} is gone: {again}")
        elif script != train and not _is_ours(script):
            found.append(f"{script} is no longer that of {OWN_NAME}: {again}")
    return found


def _own() -> Any:
    """Return this package's distribution, or None where it is not installed as one."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        return distribution(OWN_NAME)
    except PackageNotFoundError:
        return None


def _files() -> Iterator[tuple[str, Any]]:
    """Yield the path of each of this package's files, and the hash that pip has recorded."""
    own = _own()
    for file in (own.files or ()) if own is not None else ():
        if not file.name.endswith(".pyc"):
            yield os.path.normpath(str(own.locate_file(file))), file.hash


def _scripts() -> list[str]:
    paths = [path for path, _ in _files() if os.path.basename(path) in _COMMANDS]
    return [path for path in paths if os.path.basename(os.path.dirname(path)) == "bin"]


def _is_ours(path: str) -> bool:
    """Whether a command starts this package: pip's script for it, or a wrapper that names it."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return True  # nothing can be said against it
    return any(mark in head for mark in _MARKS)


def _contents() -> dict[str, tuple[bytes, int]]:
    """Return the content and the mode of this package's files that are as pip put them there."""
    found: dict[str, tuple[bytes, int]] = {}
    for path, recorded in _files():
        with contextlib.suppress(OSError), open(path, "rb") as file:
            content, mode = file.read(), os.fstat(file.fileno()).st_mode
            if recorded is None or _has_hash(content, recorded):
                found[path] = (content, mode)
    return found


def _has_hash(content: bytes, recorded: Any) -> bool:
    import base64
    import hashlib

    digest = hashlib.new(recorded.mode, content).digest()
    return bool(base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == recorded.value)


def _put_back(before: dict[str, tuple[bytes, int]]) -> None:
    replaced = [path for path, (content, _) in before.items() if _read(path) != content]
    if not replaced:
        return
    owners = sorted({owner for path in replaced if (owner := _owner(path))})
    try:
        for path in replaced:
            content, mode = before[path]
            _write(path, content, mode)
    except OSError as error:
        raise InstallError(
            f"a file of {OWN_NAME} was replaced, and cannot be put back: {error}"
        ) from error
    more = len(replaced) - _NAMED
    names = ", ".join(replaced[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    log.warning(
        "%s replaced files of %s, which were put back: %s (see docs/migration.md)",
        " and ".join(owners) or "the installation",
        OWN_NAME,
        names,
    )


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _write(path: str, content: bytes, mode: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{path}.sm-runtime-part"
    try:
        with open(part, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode & 0o7777)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def _owner(path: str) -> str | None:
    """Return the name and the version of another distribution whose files include ``path``."""
    import importlib
    from importlib.metadata import distributions

    importlib.invalidate_caches()
    for each in distributions():
        name = each.metadata["Name"] or ""
        record = each.read_text("RECORD") or ""
        inside = os.path.relpath(path, str(each.locate_file("")))
        if name.lower().replace("_", "-") != OWN_NAME and f"\n{inside}," in f"\n{record}":
            return f"{name} {each.version}"
    return None

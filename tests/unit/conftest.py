"""Unit tests use files at most: whatever starts, connects or waits belongs to another tier."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from typing import Any, NoReturn

import pytest

FORBIDDEN = (
    (subprocess.Popen, "__init__"),
    (socket.socket, "__init__"),
    (os, "fork"),
    (os, "posix_spawn"),
    (time, "sleep"),
)


@pytest.fixture(autouse=True)
def _nothing_but_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in FORBIDDEN:
        monkeypatch.setattr(owner, name, _refuse(f"{owner.__name__}.{name}"))


def _refuse(name: str) -> Any:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError(f"{name} in a unit test: move it to tests/parts or tests/jobs")

    return refuse

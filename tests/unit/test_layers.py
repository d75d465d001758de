"""Pure modules stay pure, and importing does nothing; import-linter holds the layers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sm_runtime"
_NAMES_ONLY = ("location.py", "failure.py")
"""These ask `os` and `signal` for encodings and names alone."""
PURE = [
    *sorted(path for path in PACKAGE.glob("job/*.py") if path.name not in _NAMES_ONLY),
    *sorted(PACKAGE.glob("launch/*.py")),
    *(
        PACKAGE / f"contract/{name}.py"
        for name in (
            "channels",
            "cluster",
            "environment",
            "hyperparameters",
            "load",
            "reader",
            "request",
        )
    ),
    PACKAGE / "cluster/agreement.py",
]
HANDS = {"os", "subprocess", "socket", "signal", "time", "threading", "boto3"}
USERS_SIDE = [
    *(PACKAGE / name for name in ("__main__.py", "framework.py", "records.py")),
    *PACKAGE.glob("programs/*.py"),
    *PACKAGE.glob("pipe_mode/*.py"),
    *PACKAGE.glob("inject/**/*.py"),
]
"""The commands, and what runs in a process of the user's."""
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if "tensorflow" not in path.parts]


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", PURE, ids=name)
def test_a_pure_module_touches_nothing_outside(path: Path) -> None:
    found = list(imports(path))
    assert HANDS.isdisjoint(module.split(".")[0] for module in found)
    ours = {module.split(".")[1] for module in found if module.startswith("sm_runtime.")}
    assert ours <= {"__version__", "job", "launch", "contract"}
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert {"open", "print", "input", "exec", "eval"}.isdisjoint(calls)


@pytest.mark.parametrize("path", [path for path in MODULES if path not in USERS_SIDE], ids=name)
def test_only_the_command_reads_the_environment(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (
            isinstance(node, ast.Attribute)
            and node.attr in ("environ", "environb", "getenv", "putenv")
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        ), f"line {node.lineno}"


KNOWS_SCHEMES = ("job/location.py", "job/secrets.py", "storage/")


@pytest.mark.parametrize(
    "path", [path for path in MODULES if not name(path).startswith(KNOWS_SCHEMES)], ids=name
)
def test_only_location_and_storage_know_the_forms_of_uris(path: Path) -> None:
    found = [
        f"line {node.lineno}: {node.value!r}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith(("s3:", "file:"))
        and " " not in node.value
    ]
    assert found == []

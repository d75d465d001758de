"""Pure modules stay pure, and importing does nothing; import-linter holds the layers."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
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
        for name in ("channels", "cluster", "environment", "hyperparameters", "load", "options")
    ),
    *(PACKAGE / f"contract/{name}.py" for name in ("reader", "request")),
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
KNOWS_SCHEMES = ("job/location.py", "job/secrets.py", "storage/")


Nodes = list[ast.AST]


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(nodes: Nodes) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)


def reaches_outside(nodes: Nodes) -> Iterator[str]:
    for module in imports(nodes):
        top, _, rest = module.partition(".")
        is_ours = top == "sm_runtime" and rest.split(".")[0] not in ("job", "launch", "contract")
        if top in HANDS or is_ours or not top:  # imports are absolute
            yield module
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called = node.func.id
            if called in ("open", "print", "input", "exec", "eval"):
                yield f"line {node.lineno}: {called}"


def reads_the_environment(nodes: Nodes) -> Iterator[str]:
    for node in nodes:
        if (
            isinstance(node, ast.Attribute)
            and node.attr in ("environ", "environb", "getenv", "putenv")
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        ):
            yield f"line {node.lineno}"


def spells_uris(nodes: Nodes) -> Iterator[str]:
    for node in nodes:
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith(("s3:", "file:"))
            and " " not in node.value
        ):
            yield f"line {node.lineno}: {node.value!r}"


HELD: dict[Callable[[Nodes], Iterator[str]], list[Path]] = {
    reaches_outside: PURE,
    reads_the_environment: [path for path in MODULES if path not in USERS_SIDE],
    spells_uris: [path for path in MODULES if not name(path).startswith(KNOWS_SCHEMES)],
}
"""What the modules may not do."""


@pytest.fixture(scope="module")
def broken() -> list[tuple[object, str, str]]:
    """Return the rules that are broken, and where; each module is parsed once."""
    found = []
    for path in MODULES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        for rule, paths in HELD.items():
            if path in paths:
                found += [(rule, name(path), where) for where in rule(nodes)]
    return found


@pytest.mark.parametrize("rule", HELD, ids=lambda rule: rule.__name__)
def test_no_module_does_what_its_place_forbids(
    broken: list[tuple[object, str, str]], rule: Callable[[Nodes], Iterator[str]]
) -> None:
    assert set(HELD[rule]) <= set(MODULES)
    assert [where for is_broken, *where in broken if is_broken is rule] == []

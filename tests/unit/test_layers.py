"""Pure modules stay pure, and importing does nothing; import-linter holds the layers."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
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
        for name in ("api", "cluster", "environment", "hyperparameters", "load", "options")
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
    assert ours <= {"job", "launch", "contract"}
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


IMPORT_ALL = """
import json, logging, os, signal, sys, threading
def state():
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    return [dict(os.environ), os.getcwd(), sys.path[:], threading.active_count(), os.umask(0o22),
            list(map(str, handlers)), list(map(str, logging.root.handlers)), logging.root.level,
            sorted(os.listdir("/proc/self/fd"))]
before = state()
for name in sys.argv[1:]:
    __import__(name)
print(json.dumps([state() == before, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def test_importing_does_nothing(tmp_path: Path) -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        # The hook for Python children is a sitecustomize: to act on import is what it is for.
        if "inject" not in path.parts
    ]
    done = subprocess.run(
        (sys.executable, "-B", "-X", "utf8", "-c", IMPORT_ALL, *modules),
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "SAGEMAKER_BASE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    unchanged, loaded = json.loads(done.stdout)
    assert unchanged
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
    assert {"boto3", "botocore", "numpy", "tensorflow"}.isdisjoint(loaded)


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

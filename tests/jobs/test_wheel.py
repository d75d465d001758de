"""What users install: the wheel holds all of the checkout's packages."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.harness import REQUIRED, Base
from tests.wheels import ROOT, built_wheel, checkout, packages

IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


@pytest.fixture(scope="module")
def content() -> dict[str, bytes]:
    """The files of the wheel, its metadata left out."""
    with zipfile.ZipFile(built_wheel()) as archive:
        return {
            name: archive.read(name)
            for name in archive.namelist()
            if ".dist-info/" not in name and not name.endswith("/")
        }


def test_the_wheel_holds_every_file_of_every_package_of_the_checkout(
    content: dict[str, bytes],
) -> None:
    expected = {
        path.as_posix(): (ROOT / path).read_bytes()
        for path in checkout()
        if path.parts[0] in packages()
    }
    assert {"sm_runtime/py.typed", "sm_runtime/inject/sitecustomize.py"} <= set(expected)
    assert "sagemaker_tensorflow/__init__.py" in expected
    found = {name: data for name, data in content.items() if ".data/" not in name}
    assert sorted(found) == sorted(expected)
    assert found == expected


def test_the_wheel_holds_the_commands_and_nothing_else(content: dict[str, bytes]) -> None:
    beside = {Path(name) for name in content if ".data/" in name}
    assert {path.parts[1] for path in beside} == {"scripts"}
    commands = [path.name for path in checkout() if path.parts[0] == "bin"]
    assert sorted(path.name for path in beside) == sorted(commands)


def test_a_package_that_is_missing_ends_the_build(tmp_path: Path) -> None:
    """As one that .dockerignore keeps out of an image's context."""
    for path in checkout():
        if path.parts[0] in ("bin", "sm_runtime") or str(path) in ("setup.py", "pyproject.toml"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    command = ("pip", "wheel", "-q", "--no-deps", "-w", tmp_path / "dist", tmp_path)
    done = subprocess.run(
        (sys.executable, "-m", *command), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "sagemaker_tensorflow" in done.stderr


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and what it requires, made once for all workers."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder, made = shared / "fresh/a venv", shared / "fresh/made"
    folder.parent.mkdir(exist_ok=True)
    with open(shared / "fresh/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            subprocess.run((sys.executable, "-m", "venv", "--clear", folder), check=True)
            [packages] = folder.glob("lib/python*/site-packages")
            for name in REQUIRED:
                found = distribution(name)
                for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
                    shutil.copytree(str(found.locate_file(top)), packages / top)
            install = ("-m", "pip", "install", "--quiet", "--no-index", built_wheel())
            subprocess.run((folder / "bin/python", *install), check=True)
            made.touch()
    return folder / "bin"


def test_the_wheel_alone_runs_a_job(fresh: Path, base: Base) -> None:
    base.script("import sys; print(sys.argv[1:])").hyperparameters(epochs="3")
    for command in (("train",), ("sm-runtime", "train")):
        result = base.run(command=(str(fresh / command[0]), *command[1:]))
        assert (result.status, result.out) == (0, b"['--epochs', '3']\n"), result.log
    assert base.path("output/success").exists()


def test_the_wheel_alone_has_its_commands(fresh: Path, base: Base) -> None:
    version = base.run("--version", command=(str(fresh / "sm-runtime"),))
    assert version.out.decode().strip() == f"sm-runtime {built_wheel().name.split('-')[1]}"
    base.script("")
    assert base.run("check", command=(str(fresh / "sm-runtime"),)).status == 0
    shown = base.run("env", command=(str(fresh / "sm-runtime"),))
    assert b"export SM_USER_ENTRY_POINT=train.py\n" in shown.out


def test_every_module_that_needs_no_extra_can_be_imported(
    fresh: Path, content: dict[str, bytes]
) -> None:
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in content
        if name.startswith("sm_runtime/") and name.endswith(".py")
        if "/inject/" not in name and "/serving/" not in name
    )
    modules.append("sm_runtime.serving.serve")
    assert {"sm_runtime.framework", "sm_runtime.records", "sm_runtime.pipe_mode"} <= set(modules)
    done = subprocess.run(
        (fresh / "python", "-c", IMPORT_ALL, *modules), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_dataset_needs_tensorflow_and_says_so(fresh: Path) -> None:
    program = "from sagemaker_tensorflow import PipeModeDataset"
    done = subprocess.run(
        (fresh / "python", "-c", program), capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'tensorflow'"


def test_serve_without_its_extra_names_it(fresh: Path, base: Base) -> None:
    base.path("model").mkdir(parents=True)
    result = base.run(command=(str(fresh / "serve"),))
    assert result.status == 1
    assert result.log.splitlines()[-1].endswith(
        "serve needs uvicorn, httptools, orjson, prometheus_client: pip install 'sm-runtime[serve]'"
    )

"""The commands of README and docs that need no Docker, run as they stand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.markdown import ROOT, fences, run_in
from tests.wheels import checkout

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(1200)]
HIDDEN = ("VENV", "VIRTUAL_ENV", "PYTHONPATH", "FROM_CHECKOUT")
TRAIN = """
import argparse, os
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
parser.add_argument("--learning-rate", type=float)
arguments = parser.parse_args()
with open(os.path.join(os.environ["SM_MODEL_DIR"], "weights"), "w") as file:
    file.write(f"{arguments.epochs} {arguments.learning_rate}")
"""


def clone(folder: Path) -> Path:
    """Return a copy of what git has of the checkout, as it stands, in a repository of its own."""
    for path in checkout():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, folder / path, follow_symlinks=False)
    (folder / "train.py").write_text(TRAIN)
    return folder


def environment(folder: Path, *, shared: bool) -> dict[str, str]:
    """Return variables that put a new virtual environment first."""
    subprocess.run((sys.executable, "-m", "venv", folder), check=True)
    if shared:
        packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
        own = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        Path(packages, "tests.pth").write_text(own)
    kept = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    own = f"{sysconfig.get_path('scripts')}:" if shared else ""
    return {**kept, "PATH": f"{folder / 'bin'}:{own}{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("place", "document"),
    run_in("checkout", "checkout with TensorFlow"),
    ids=lambda each: str(each.relative_to(ROOT)) if isinstance(each, Path) else each,
)
def test_the_commands_of_a_document_succeed(place: str, document: Path, tmp_path: Path) -> None:
    here = clone(tmp_path / "clone")
    environ = environment(tmp_path / "venv", shared="TensorFlow" in place)
    for fence in fences(document):
        if fence.place == place:
            done = subprocess.run(
                ("sh", "-eu", "-c", fence.commands),
                cwd=here,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{fence.name}:\n{done.stdout}"
    if document.name == "README.md" and document.parent == ROOT:
        assert (here / "ml/model/weights").read_text() == "3 0.01"

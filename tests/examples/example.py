"""Puts an example's code, configuration and data in place, the way a person or a platform does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from tests.harness import Base, Result

ROOT = Path(__file__).resolve().parents[2]
FASHION_MNIST = (
    Path("/usr/share/datasets/fashion-mnist"),
    ROOT / "build/system/usr/share/datasets/fashion-mnist",
)
"""Where scripts/test puts the data set: as root, and without."""


class Example:
    """A job of ``examples/<name>`` in a base folder of its own."""

    def __init__(self, name: str, folder: Path, *prepare: str) -> None:
        self.source = ROOT / "examples" / name
        self.base = Base(folder / "ml")
        self.artifacts = folder / "artifacts"
        shutil.copytree(self.source / "source", self.base.path("code"))
        for path in self.source.glob("*.json"):
            self.base.write(f"input/config/{path.name}", path.read_text())
        request = self.read("job.json")
        request["OutputDataConfig"]["S3OutputPath"] = self.artifacts.as_uri()
        self.base.write("input/config/job.json", request)
        self.saved = self.artifacts / request["TrainingJobName"] / "output"
        script = self.source / "prepare_data.py"
        data = self.base.path("input/data")
        subprocess.run([sys.executable, script, *prepare, data], check=True, timeout=100)

    def read(self, name: str) -> Any:
        return json.loads(self.base.path("input/config", name).read_text())

    def set(self, **hyperparameters: str) -> None:
        name = "hyperparameters.json"
        self.base.write(f"input/config/{name}", {**self.read(name), **hyperparameters})

    def train(self) -> Result:
        return self.base.run(seconds=280)

    def unpacked(self, name: str, folder: Path) -> Path:
        """Unpack one of the saved archives into ``folder``."""
        with tarfile.open(self.saved / name) as archive:
            archive.extractall(folder, filter="data")
        return folder


def metric(name: str, text: str) -> float:
    """Return the last ``name: value`` of a job's output, as a metric definition would find it."""
    return float(text.rpartition(f"{name}: ")[2].split()[0])


def python(program: str, *arguments: object) -> str:
    """Run a program in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        check=True,
        timeout=100,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout

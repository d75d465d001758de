"""A Slurm cluster of two nodes on this machine, as ``scripts/slurm`` makes it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.harness import RUNTIME, Base, Result, Running, eventually
from tests.markdown import ROOT

NODES = ("n1", "n2")
ON_NODE = 'export SAGEMAKER_BASE_DIR="$0/$SLURMD_NODENAME"; exec "$@"'
"""Nodes of one machine share its file system: each gets a base folder of its own."""
SECRET = "a secret of this test's cluster"


@dataclass
class Job:
    """The same job on both nodes, in a folder that has a base folder for each."""

    root: Path
    configuration: str
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bases = {node: Base(self.root / node) for node in NODES}
        self.environ = {
            **self.bases["n1"].environ,
            "SLURM_CONF": self.configuration,
            "SM_RUNTIME_CLUSTER_SECRET": SECRET,
            "SM_RUNTIME_PEER_WAIT_SECONDS": "60",
        }

    def script(self, text: str, **hyperparameters: Any) -> Job:
        for base in self.bases.values():
            base.script(text).hyperparameters(**hyperparameters)
        self.environ["SAGEMAKER_PROGRAM"] = "train.py"
        return self

    def saves(self, **more: Any) -> Job:
        """Make the job self-managed."""
        output = {"S3OutputPath": f"file://{self.root}/saved"}
        for base in self.bases.values():
            request = {"TrainingJobName": "job", "OutputDataConfig": output, **more}
            base.write("input/config/job.json", request)
        return self

    def step(self, *options: str) -> list[str]:
        """Return the words that start the runtime once on each node."""
        each = ("--ntasks-per-node=1", *options)
        return ["srun", *each, "sh", "-c", ON_NODE, str(self.root), *RUNTIME, "train"]

    def start(self, *options: str, **environ: str) -> Running:
        return self.popen(self.step("-N2", "--job-name", self.root.name, *options), **environ)

    def run(self, *options: str, **environ: str) -> Result:
        return self.start(*options, **environ).wait(90)

    def popen(self, words: list[str], **environ: str) -> Running:
        return Running(
            subprocess.Popen(
                words,
                env={**self.environ, **environ},
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )

    def call(self, *words: str) -> str:
        """Run one of Slurm's commands; return what it prints."""
        done = subprocess.run(
            words,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.strip()

    def is_over(self) -> bool:
        return not self.call("squeue", "--noheader")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The path of the cluster's slurm.conf."""
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    script = ROOT / "scripts/slurm"
    subprocess.run((script, "up", folder), check=True, timeout=100)
    yield str(folder / "slurm.conf")
    subprocess.run((script, "down", folder), check=True, timeout=60)


@pytest.fixture
def job(slurm: str, tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path, slurm)
    yield made
    made.call("scancel", "--user=root")
    eventually(made.is_over, "the job is over", 60)

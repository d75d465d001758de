"""The commands of the documents about Slurm, run as they stand."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.jobs.test_docs import clone, environment
from tests.markdown import fences, run_in

CLUSTER = "/tmp/slurm-cluster"


@pytest.mark.tensorflow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "document", [path for _, path in run_in("Slurm")], ids=lambda path: str(path.name)
)
def test_the_commands_of_a_document_succeed(document: Path, tmp_path: Path) -> None:
    here = clone(tmp_path / "clone")
    found = [fence.commands for fence in fences(document) if fence.place == "Slurm"]
    own = str(tmp_path / "cluster")
    script = "\n".join(found).replace(CLUSTER, own)
    ends = f"trap '[ ! -e {own} ] || scripts/slurm down {own}' EXIT\n"
    done = subprocess.run(
        ("sh", "-eu", "-c", ends + script),
        cwd=here,
        env=environment(tmp_path / "venv", shared=True),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert sorted(re.findall(r"rank (\d of 4 on n\d: \d)$", done.stdout, re.MULTILINE)) == [
        "0 of 4 on n1: 6",
        "1 of 4 on n1: 6",
        "2 of 4 on n2: 6",
        "3 of 4 on n2: 6",
    ]
    assert (here / "try/saved/ps/output/model.tar.gz").exists()
    assert not Path(own).exists()

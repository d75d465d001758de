"""The commands of README and docs that need Docker, run as they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docker.container import docker, tag
from tests.jobs.test_docs import TRAIN
from tests.markdown import fences, run_in


@pytest.mark.parametrize(
    "document", [document for _, document in run_in("image")], ids=lambda path: path.name
)
def test_the_commands_of_a_document_succeed(cpu_image: str, document: Path, tmp_path: Path) -> None:
    """In a folder with the script, which is where a job looks for it as well."""
    (tmp_path / "ml/code").mkdir(parents=True)
    for path in (tmp_path / "train.py", tmp_path / "ml/code/train.py"):
        path.write_text(TRAIN, encoding="utf-8")
    for fence in fences(document):
        if fence.place != "image":
            continue
        commands = re.sub(r"\bsm-runtime:(cpu|gpu)\b", lambda name: tag(name[1]), fence.commands)
        command = ["sh", "-eu", "-c", commands]
        if fence.language == "dockerfile":
            command = ["docker", "build", "-t", "sm-runtime-test:docs", "-"]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            input=commands,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{fence.name}:\n{done.stdout}"
    assert (tmp_path / "ml/model/weights").exists()
    shutil.rmtree(tmp_path / "ml")
    if "dockerfile" in {fence.language for fence in fences(document)}:
        docker("rmi", "-f", "sm-runtime-test:docs")

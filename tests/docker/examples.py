"""The worked examples: which test runs which, and the data that several of them share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.docker.container import ROOT, Ml, run

EXAMPLES = ROOT / "examples"
DATA = "usr/share/datasets/fashion-mnist"
RUN: dict[str, str] = {}
"""By the name of an example, the test that runs it inside the image."""

Test = TypeVar("Test", bound=Callable[..., None])


def examples(folder: Path = EXAMPLES) -> list[str]:
    """Return the names of all examples; a folder that holds nothing but folders holds examples."""
    found = []
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        if any(entry.is_file() for entry in path.iterdir()):
            found.append(str(path.relative_to(EXAMPLES)))
        else:
            found += examples(path)
    return found


def runs(example: str) -> Callable[[Test], Test]:
    """Mark the test that runs an example inside the image."""
    assert example in examples(), f"there is no example {example}"
    assert example not in RUN, f"{RUN[example]} runs {example} already"

    def marked(test: Test) -> Test:
        RUN[example] = test.__name__
        return pytest.mark.versions(test)

    return marked


def fashion_mnist() -> Path:
    """Return the folder of the data set: where scripts/docker puts it, as root or without."""
    return next(
        path / DATA for path in (ROOT / "build/system", Path("/")) if (path / DATA).is_dir()
    )


def prepare(image: str, example: str, folder: Path) -> None:
    """Make the channels of an example in ``folder``, by its own program inside the image."""
    source = ("--source", "/source") if example != "regression" else ()
    mounts = ("-v", f"{EXAMPLES / example}:/example:ro", "-v", f"{fashion_mnist()}:/source:ro")
    words = ("python", "/example/prepare_data.py", *source, "/data")
    prepared = run(image, *words, options=(*mounts, "-v", f"{folder}:/data"))
    assert prepared.status == 0, prepared.err


def place(example: str, ml: Ml) -> dict[str, str]:
    """Put an example's code and configuration in place; return its hyperparameters."""
    shutil.copytree(EXAMPLES / example / "source", ml.root / "code")
    for path in (EXAMPLES / example).glob("*.json"):
        ml.write(f"input/config/{path.name}", path.read_text(encoding="utf-8"))
    found: dict[str, str] = json.loads(ml.read("input/config/hyperparameters.json"))
    return found

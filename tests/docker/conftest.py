from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.container import LOCKED, Ml, scripts_docker, tag
from tests.docker.served import train_fashion_mnist

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def lacks(item: pytest.Item) -> bool:
        return any(mark.args[0] not in LOCKED for mark in item.iter_markers("needs"))

    config.hook.pytest_deselected(items=[item for item in items if lacks(item)])
    items[:] = [item for item in items if not lacks(item)]
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.docker)
            # The first test waits for the images, which from nothing take minutes.
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def cpu_image() -> str:
    scripts_docker("cpu")
    return tag("cpu")


@pytest.fixture(scope="session")
def gpu_image() -> str:
    """The GPU image upon a base without CUDA: what it does without a GPU can be tested anywhere."""
    scripts_docker("gpu", GPU_STAND_IN="1")
    return tag("gpu-stand-in")


@pytest.fixture(scope="session")
def base() -> str:
    """The name of the image that the CPU image is built upon."""
    text = scripts_docker("base")
    return text.splitlines()[-1]


@pytest.fixture(scope="session")
def fashion_mnist_model(cpu_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ml]:
    """The folders of the example's job: ``model/1`` below them, and its archive."""
    trained = train_fashion_mnist(cpu_image, tmp_path_factory.mktemp("fashion_mnist") / "ml")
    yield trained
    shutil.rmtree(trained.root)


@pytest.fixture
def ml(tmp_path: Path) -> Iterator[Ml]:
    folder = Ml(tmp_path / "ml")
    yield folder
    # What containers leave may belong to other users.
    shutil.rmtree(folder.root)

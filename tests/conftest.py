from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.harness import Base, Running

# A busy machine is no reason to fail.
settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("patient")

# What is ignored here would be by the jobs: under nohup, or in the background of a shell.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may take longest begins first, or all other workers wait for it at the end."""

    def seconds(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker else 0

    items.sort(key=seconds, reverse=True)


def pytest_collection_finish() -> None:
    """Thousands of tests and their modules live to the end: no collection looks at them again."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    yield
    for running in Running.started_by_test:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
    Running.started_by_test.clear()


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return Base(tmp_path / "opt" / "ml")

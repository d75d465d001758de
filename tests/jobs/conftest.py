"""Fixtures of the tests that run jobs of several hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import hosts, netns


@pytest.fixture(scope="session")
def networks() -> Iterator[dict[int, netns.Network]]:
    """By their number, hosts that reach each other."""
    with ExitStack() as undo:
        yield {
            count: undo.enter_context(netns.network([f"algo-{i}" for i in range(1, count + 1)]))
            for count in (2, 3)
        }


@pytest.fixture
def cluster(
    networks: dict[int, netns.Network], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[hosts.Cluster]:
    """Two hosts of a job, or as many as the parameter says."""
    with hosts.cluster(tmp_path, networks[getattr(request, "param", 2)]) as made:
        yield made

"""SavedModels that hosting would not find are warned of."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sm_runtime.job.model import Cluster, Job, Paths
from sm_runtime.output import artifacts

SAID = "is a SavedModel, but not in a folder whose name is a number"


@pytest.mark.parametrize(
    "place, is_fine",
    [("model/1", True), ("model/export/00042", True), ("model", False), ("model/best", False)],
)
@pytest.mark.parametrize("name", ["saved_model.pb", "saved_model.pbtxt"])
def test_a_saved_model_wants_a_version(
    tmp_path: Path, place: str, is_fine: bool, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / name).write_bytes(b"x")
    cluster = Cluster(current_host="a", hosts=("a",))
    job = Job(paths=Paths(str(tmp_path)), cluster=cluster, managed=True)
    with caplog.at_level(logging.WARNING, "sm_runtime"):
        artifacts.save(job)
    assert (f"{tmp_path}/{place} {SAID}" in caplog.text) is not is_fine


def test_what_is_no_saved_model_is_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.h5").write_bytes(b"x")
    cluster = Cluster(current_host="a", hosts=("a",))
    artifacts.save(Job(paths=Paths(str(tmp_path)), cluster=cluster, managed=True))
    assert caplog.text == ""

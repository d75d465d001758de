"""What a job may use is counted, from the devices and the tools that there are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sm_runtime.processes import hardware


def machine(root: Path, gpus: int = 0, driver: int = 0) -> str:
    (root / "dev").mkdir()
    for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{i}" for i in range(gpus))):
        (root / "dev" / name).touch()
    for i in range(driver):
        (root / f"proc/driver/nvidia/gpus/0000:{i:02}:00.0").mkdir(parents=True)
    return str(root)


def quota(root: Path, text: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cgroup.procs").touch()
    (root / "sys/fs/cgroup/cpu.max").write_text(text)


ALL = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("limit", "cpus"),
    [
        ("max 100000", ALL),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("150000 100000", min(ALL, 2)),
        ("6400000 100000", min(ALL, 64)),
    ],
)
def test_cpus_are_those_of_the_quota_rounded_up(tmp_path: Path, limit: str, cpus: int) -> None:
    quota(tmp_path, limit)
    assert hardware.count({}, str(tmp_path)).cpus == cpus


def test_cpus_are_those_that_the_process_may_run_on(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert hardware.count({}, str(tmp_path)).cpus == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("given", "visible", "expected"),
    [("2", None, 2), ("16", None, 8), ("0", None, 0), ("", None, 8), ("x", None, 8), ("2", "0", 1)],
)
def test_slurms_number_of_gpus_counts_where_it_names_none(
    tmp_path: Path, given: str, visible: str | None, expected: int
) -> None:
    environ = {"SLURM_GPUS_ON_NODE": given}
    if visible is not None:
        environ["CUDA_VISIBLE_DEVICES"] = visible
    assert hardware.count(environ, machine(tmp_path, 8)).gpus == expected


@pytest.mark.parametrize(
    ("gpus", "driver", "expected"),
    [(0, 0, 0), (2, 0, 2), (2, 2, 2), (1, 8, 1), (8, 1, 1), (0, 8, 0)],
)
def test_gpus_are_those_that_can_be_opened(
    tmp_path: Path, gpus: int, driver: int, expected: int
) -> None:
    assert hardware.count({}, machine(tmp_path, gpus, driver)).gpus == expected


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0", 1),
        ("0,1", 2),
        (" 3 , 1 ", 2),
        ("", 0),
        ("-1", 0),
        ("NoDevFiles", 0),
        ("0,-1,1", 1),
        ("0,4,1", 1),
        ("0,x,1", 1),
        ("4", 0),
        ("0,0", 0),
        ("GPU-8932f937-d72c,GPU-ab12", 2),
        ("GPU-8932f937-d72c,0", 1),
        ("MIG-GPU-1/0/0,MIG-GPU-1/1/0,MIG-a,MIG-b,MIG-c", 5),
        ("0,GPU-8932f937-d72c", 1),
    ],
)
def test_cuda_visible_devices_is_honoured_as_cuda_reads_it(
    tmp_path: Path, visible: str, expected: int
) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": visible}
    assert hardware.count(environ, machine(tmp_path, 4)).gpus == expected

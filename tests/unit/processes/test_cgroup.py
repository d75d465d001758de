"""Limits are found in control groups of both versions, wherever they are mounted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sm_runtime.processes import hardware

V2 = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cgroup.procs": "1\n"}
V1_LINES = "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n0::/\n"
NO_LIMIT = "9223372036854771712\n"


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param(V2 | {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None, id="v2 unlimited"),
        pytest.param(V2 | {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5, id="v2"),
        pytest.param(V2 | {"sys/fs/cgroup/cpu.max": "garbage\n"}, None, id="v2 garbage"),
        pytest.param(V2 | {"sys/fs/cgroup/cpu.max": "0 0"}, None, id="v2 zero"),
        pytest.param(
            V2
            | {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
            },
            2.0,
            id="v2 limit of the parent",
        ),
        pytest.param(
            V2
            | {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
            },
            2.0,
            id="v2 the smallest counts",
        ),
        pytest.param(
            V2
            | {
                "proc/self/cgroup": "0::/../../elsewhere\n",
                "sys/fs/cgroup/cpu.max": "100000 100000",
            },
            1.0,
            id="v2 from outside of the namespace",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1_LINES,
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            0.5,
            id="v1 on a host",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1_LINES,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3.0,
            id="v1 in a container",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1_LINES,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
            id="v1 unlimited",
        ),
        pytest.param({"sys/fs/cgroup/cpu.max": "100000 100000"}, None, id="no mount"),
    ],
)
def test_the_cpu_limit_is_the_smallest_on_the_way_up(
    tmp_path: Path, files: dict[str, str], cpus: float | None
) -> None:
    assert hardware.cpu_limit(tree(tmp_path, files)) == cpus


@pytest.mark.parametrize(
    ("files", "size"),
    [
        pytest.param({}, None, id="nothing"),
        pytest.param(V2 | {"sys/fs/cgroup/memory.max": "max\n"}, None, id="v2 unlimited"),
        pytest.param(V2 | {"sys/fs/cgroup/memory.max": "1048576\n"}, 1048576, id="v2"),
        pytest.param(
            {
                "proc/self/cgroup": V1_LINES,
                "sys/fs/cgroup/memory/memory.limit_in_bytes": NO_LIMIT,
                "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "4096\n",
            },
            4096,
            id="v1 on a host",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1_LINES,
                "sys/fs/cgroup/memory/memory.limit_in_bytes": NO_LIMIT,
            },
            None,
            id="v1 unlimited",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1_LINES,
                "sys/fs/cgroup/unified/cgroup.procs": "1\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "8192\n",
            },
            8192,
            id="hybrid",
        ),
    ],
)
def test_the_memory_limit_is_in_bytes(
    tmp_path: Path, files: dict[str, str], size: int | None
) -> None:
    assert hardware.memory_limit(tree(tmp_path, files)) == size


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        pytest.param({}, 0, id="nothing"),
        pytest.param(
            V2 | {"sys/fs/cgroup/memory.events": "low 0\noom 3\noom_kill 2\n"}, 2, id="v2"
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1_LINES,
                "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\noom_kill 1\n",
            },
            1,
            id="v1 in a container",
        ),
        pytest.param(
            {
                "proc/self/cgroup": V1_LINES,
                "sys/fs/cgroup/memory/memory.oom_control": "oom_kill 9\n",
                "sys/fs/cgroup/memory/docker/abc/memory.oom_control": "oom_kill 4\n",
            },
            4,
            id="v1 the own group's",
        ),
    ],
)
def test_the_processes_that_the_kernel_ended_are_counted(
    tmp_path: Path, files: dict[str, str], kills: int
) -> None:
    assert hardware.oom_kills(tree(tmp_path, files)) == kills


def test_what_cannot_be_read_sets_no_limit(tmp_path: Path) -> None:
    root = tree(tmp_path, V2 | {"sys/fs/cgroup/cpu.max": "1 1"})
    os.unlink(f"{root}/sys/fs/cgroup/cpu.max")
    os.mkdir(f"{root}/sys/fs/cgroup/cpu.max")
    Path(f"{root}/sys/fs/cgroup/memory.max").write_bytes(b"\xff\xfe")
    assert hardware.cpu_limit(root) is None
    assert hardware.memory_limit(root) is None


def test_this_machine_has_groups_that_can_be_read() -> None:
    cpus, size = hardware.cpu_limit(), hardware.memory_limit()
    assert cpus is None or cpus > 0
    assert size is None or size > 2**20
    assert hardware.oom_kills() >= 0


def test_shared_memory_has_a_size_where_there_is_any(tmp_path: Path) -> None:
    assert hardware.shared_memory(str(tmp_path)) == (None, None)
    (tmp_path / "dev/shm").mkdir(parents=True)
    size, free = hardware.shared_memory(str(tmp_path))
    found = os.statvfs(tmp_path)
    assert size == found.f_frsize * found.f_blocks
    assert free is not None and 0 <= free <= size

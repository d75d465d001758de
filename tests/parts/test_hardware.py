"""Devices that only a vendor's tool knows are counted by asking it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sm_runtime.job.model import Cluster, Job, Paths
from sm_runtime.processes import hardware


def test_without_device_nodes_the_tool_is_asked(tmp_path: Path) -> None:
    path = tool(tmp_path, "nvidia-smi", f'[ "$1" = --list-gpus ] && {{ {LISTING}; }}')
    root = machine(tmp_path)
    assert hardware.count({"PATH": f":relative:{path}"}, root).gpus == 2
    assert hardware.count({"PATH": path, "CUDA_VISIBLE_DEVICES": "1"}, root).gpus == 1
    assert hardware.count({"PATH": "/nowhere"}, root).gpus == 0


@pytest.mark.parametrize("value", ["none", "void", ""])
def test_a_container_without_devices_by_request_asks_no_tool(tmp_path: Path, value: str) -> None:
    path = tool(tmp_path, "nvidia-smi", LISTING)
    environ = {"PATH": path, "NVIDIA_VISIBLE_DEVICES": value}
    assert hardware.count(environ, machine(tmp_path)).gpus == 0
    assert hardware.count(environ, machine_with_a_gpu(tmp_path)).gpus == 1


def test_with_device_nodes_no_tool_is_started(tmp_path: Path) -> None:
    path = tool(tmp_path, "nvidia-smi", f"touch {tmp_path}/started; {LISTING}")
    assert hardware.count({"PATH": path}, machine(tmp_path, 1)).gpus == 1
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("script", ["echo 'GPU 0: A'; exit 9", "kill -9 $$"])
def test_a_tool_that_fails_counts_nothing_and_says_so(
    tmp_path: Path, script: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tool(tmp_path, "nvidia-smi", script)
    assert hardware.count({"PATH": path}, machine(tmp_path)).gpus == 0
    assert f"{path}/nvidia-smi failed" in caplog.text


def test_neuron_cores_are_added_up(tmp_path: Path) -> None:
    path = tool(tmp_path, "neuron-ls", 'echo \'[{"nc_count": 2}, {"nc_count": 4}, {}]\'')
    assert hardware.count({"PATH": path}, str(tmp_path)).neurons == 6
    assert hardware.count({"PATH": "/nowhere"}, str(tmp_path)).neurons == 0


@pytest.mark.parametrize("answer", ["[1]", "no JSON", "5", '[{"nc_count": "x"}]'])
def test_a_strange_answer_is_no_neuron_core(tmp_path: Path, answer: str) -> None:
    path = tool(tmp_path, "neuron-ls", f"echo '{answer}'")
    assert hardware.count({"PATH": path}, str(tmp_path)).neurons == 0


def machine(root: Path, gpus: int = 0, driver: int = 0) -> str:
    (root / "dev").mkdir()
    for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{i}" for i in range(gpus))):
        (root / "dev" / name).touch()
    for i in range(driver):
        (root / f"proc/driver/nvidia/gpus/0000:{i:02}:00.0").mkdir(parents=True)
    return str(root)


def tool(root: Path, name: str, script: str) -> str:
    folder = root / "bin"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return str(folder)


LISTING = "echo 'GPU 0: A (UUID: GPU-1)'; echo '  MIG 1g.5gb Device 0:'; echo 'GPU 1: A'"


def machine_with_a_gpu(root: Path) -> str:
    (root / "dev/nvidia0").touch()
    return str(root)


@pytest.mark.parametrize(
    "kind, cores", [("ml.trn2.48xlarge", 64), ("trn2.48xlarge", 64), ("ml.trn1.2xlarge", 0)]
)
def test_an_instance_type_may_imply_its_neuron_cores(kind: str, cores: int) -> None:
    cluster = Cluster(current_host="a", hosts=("a",), current_instance_type=kind)
    job = Job(paths=Paths(), cluster=cluster)
    assert hardware.of_job(job, {"PATH": "/nonexistent"}).neurons == cores

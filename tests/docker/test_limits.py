"""What Docker grants a container is what the script is told, and what the failure names."""

from __future__ import annotations

import pytest

from tests.docker.container import Ml, run

SHOWS = """
import os
print(os.environ["SM_NUM_CPUS"], os.environ["SM_NUM_GPUS"])
"""
HUNGRY = "held = [bytearray(1 << 20) for _ in range(4096)]\n"
NVIDIA_SMI = """#!/bin/sh
[ "$1" = --list-gpus ] || [ "$1" = -L ] || exit 9
echo "GPU 0: Tesla T4 (UUID: GPU-00000000-0000-0000-0000-000000000000)"
echo "GPU 1: Tesla T4 (UUID: GPU-11111111-1111-1111-1111-111111111111)"
"""
NODES = ("--device", "/dev/null:/dev/nvidia0", "--device", "/dev/null:/dev/nvidia1")


def shown(image: str, ml: Ml, *options: str) -> str:
    ml.write("code/train.py", SHOWS)
    result = run(image, options=(*ml.mount, "-e", "SAGEMAKER_PROGRAM=train.py", *options))
    assert result.status == 0, result.err
    return result.out.strip()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--cpus", "1"), "1 0"),
        (("--cpus", "0.5"), "1 0"),
        (("--cpuset-cpus", "0"), "1 0"),
    ],
)
def test_the_cpus_granted_are_counted(
    cpu_image: str, ml: Ml, options: tuple[str, ...], expected: str
) -> None:
    assert shown(cpu_image, ml, *options) == expected


def test_running_out_of_memory_is_named_with_the_limit(cpu_image: str, ml: Ml) -> None:
    ml.write("code/train.py", HUNGRY)
    result = run(
        cpu_image,
        options=(
            *ml.mount,
            *("--memory", "256m", "--memory-swap", "256m"),
            *("-e", "SAGEMAKER_PROGRAM=train.py"),
        ),
    )
    assert result.status == 137, result.err
    assert "OOM-killed: limit 256 MiB" in ml.read("output/failure").splitlines()[0]


@pytest.mark.parametrize("kind", ["cpu_image", "gpu_image"])
def test_gpus_are_counted_by_their_device_nodes(
    request: pytest.FixtureRequest, ml: Ml, kind: str
) -> None:
    image = request.getfixturevalue(kind)
    assert shown(image, ml, *NODES).split()[1] == "2"
    assert shown(image, ml, *NODES, "-e", "CUDA_VISIBLE_DEVICES=1").split()[1] == "1"
    assert shown(image, ml, *NODES, "-e", "CUDA_VISIBLE_DEVICES=").split()[1] == "0"


def test_gpus_without_nodes_are_counted_by_the_drivers_tool(gpu_image: str, ml: Ml) -> None:
    tool = ml.write("nvidia-smi", NVIDIA_SMI)
    tool.chmod(0o755)
    mount = ("-v", f"{tool}:/usr/local/bin/nvidia-smi:ro")
    assert shown(gpu_image, ml, *mount).split()[1] == "2"
    assert shown(gpu_image, ml, *mount, "-e", "NVIDIA_VISIBLE_DEVICES=none").split()[1] == "0"


def test_the_gpu_image_asks_for_the_drivers_libraries(gpu_image: str, ml: Ml) -> None:
    result = run(gpu_image, "printenv", "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_VISIBLE_DEVICES")
    assert result.out.split() == ["compute,utility", "all"]
    assert shown(gpu_image, ml).split()[1] == "0"

"""``docker stop`` is how a platform ends a job: it has to reach the script, whoever is PID 1."""

from __future__ import annotations

import pytest

from tests.docker.container import Container, Ml

SAVES = """
import os, signal, sys
def save(*_):
    folder = os.environ["SM_MODEL_DIR"]
    with open(os.path.join(folder, "checkpoint"), "w") as file:
        file.write("step 12")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True:
    signal.pause()
"""
IGNORES = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""
LITTERS = """
import os, subprocess
for _ in range(200):  # grandchildren whose parent is gone when they end
    subprocess.run(["sh", "-c", "true & exit 0"])
subprocess.Popen(["sleep", "1000"], start_new_session=True)
states = []
for entry in os.listdir("/proc"):
    if entry.isdigit():
        try:
            with open(f"/proc/{entry}/stat") as file:
                states.append(file.read().rpartition(")")[2].split()[0])
        except OSError:
            pass
print("zombies", states.count("Z") > 5)
"""
PID_1 = pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="tini"),
        pytest.param(("--init",), id="docker-init"),
        pytest.param(("--entrypoint", "train"), id="runtime"),
        pytest.param(("--pid", "host"), id="host"),
    ],
)


@PID_1
def test_docker_stop_gives_a_checkpoint_and_a_clean_end(
    cpu_image: str, ml: Ml, options: tuple[str, ...]
) -> None:
    ml.write("code/train.py", SAVES)
    options = (*ml.mount, *options, "-e", "SAGEMAKER_PROGRAM=train.py")
    with Container(cpu_image, options=options) as container:
        container.ready()
        assert container.stop(30) == 0, container.log()
        assert "Reporting training SUCCESS" in container.log()
    assert ml.read("model/checkpoint") == "step 12"
    assert ml.exists("output/success")


def test_a_shell_script_as_entry_point_passes_the_stop_on(cpu_image: str, ml: Ml) -> None:
    ml.write("code/train.py", SAVES)
    ml.write("code/run.sh", "python train.py\n")
    options = (*ml.mount, "-e", "SAGEMAKER_PROGRAM=run.sh")
    with Container(cpu_image, options=options) as container:
        container.ready()
        container.stop(30)
    assert ml.read("model/checkpoint") == "step 12"


@PID_1
def test_a_script_that_ignores_the_stop_is_killed_after_its_grace(
    cpu_image: str, ml: Ml, options: tuple[str, ...]
) -> None:
    ml.write("code/train.py", IGNORES)
    grace = ("-e", "SM_RUNTIME_STOP_GRACE_SECONDS=1")
    options = (*ml.mount, *options, *grace, "-e", "SAGEMAKER_PROGRAM=train.py")
    with Container(cpu_image, options=options) as container:
        container.ready()
        assert container.stop(60) == 143, container.log()
    assert ml.exists("output/failure")


def test_ctrl_c_ends_a_job_too(cpu_image: str, ml: Ml) -> None:
    ml.write("code/train.py", "import signal\nprint('ready', flush=True)\nsignal.pause()\n")
    options = (*ml.mount, "--stop-signal", "SIGINT", "-e", "SAGEMAKER_PROGRAM=train.py")
    with Container(cpu_image, options=options) as container:
        container.ready()
        assert container.stop(30) == 130, container.log()


@PID_1
def test_orphans_neither_pile_up_nor_hold_the_job(
    cpu_image: str, ml: Ml, options: tuple[str, ...]
) -> None:
    ml.write("code/train.py", LITTERS)
    options = (*ml.mount, *options, "-e", "SAGEMAKER_PROGRAM=train.py")
    if "--pid" not in options:
        options += ("--pids-limit", "64")
    with Container(cpu_image, options=options) as container:
        assert container.wait() == 0, container.log()
        assert "zombies False" in container.log()

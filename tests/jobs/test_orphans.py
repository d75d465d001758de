"""What becomes of the script's processes when the runtime is killed, or where there is no /proc."""

from __future__ import annotations

import signal

import pytest

from tests import hosts
from tests.harness import Base, eventually, processes_with

WAITS = "import signal\nprint('ready', flush=True)\nwhile True: signal.pause()\n"


def test_a_script_does_not_outlive_a_runtime_that_is_killed(base: Base) -> None:
    mark = {"SM_TEST_MARK": str(base.root)}
    running = base.script("import signal\nsignal.signal(15, signal.SIG_IGN)\n" + WAITS)
    started = running.start(**mark)
    started.ready()
    started.send(signal.SIGKILL)
    started.wait()
    eventually(lambda: processes_with(f"SM_TEST_MARK={base.root}") == [], "no process is left")


def test_ranks_and_services_do_not_outlive_a_runtime_that_is_killed(cluster: hosts.Cluster) -> None:
    for base in cluster.bases:
        base.script(WAITS).hyperparameters(
            sagemaker_mpi_enabled="true", sagemaker_mpi_num_of_processes_per_host="2"
        )
        del base.environ["SM_RUNTIME_LAUNCHER"]
    cluster.start().ready()
    for running in cluster.running.values():
        running.send(signal.SIGKILL)
    cluster.wait()
    eventually(lambda: not cluster.left(), "no process is left", 30)


WITHOUT_PROC = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc; exec "$@"', "sh")


@pytest.mark.parametrize("status", [0, 3])
def test_without_proc_a_job_runs_and_ends_as_ever(base: Base, status: int) -> None:
    result = base.script(f"print('ran'); raise SystemExit({status})").run(prefix=WITHOUT_PROC)
    assert (result.status, result.out) == (status, b"ran\n"), result.log
    assert result.log.count("/proc is not mounted") == 1


def test_without_proc_a_stop_reaches_the_script(base: Base) -> None:
    base.write(
        "code/save.py",
        "import os, signal, sys\n"
        "def save(*_):\n"
        "    open(os.environ['SM_MODEL_DIR'] + '/saved', 'w').close()\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n" + WAITS,
    )
    running = base.script("python3 save.py | cat; echo x\n", "run.sh").start(prefix=WITHOUT_PROC)
    running.ready()
    running.send(signal.SIGTERM)
    result = running.wait()
    assert result.status in (0, 143), result.log
    assert base.path("model/saved").exists()


def test_without_proc_leftovers_in_the_scripts_group_are_ended(base: Base) -> None:
    mark = {"SM_TEST_MARK": str(base.root)}
    script = "import subprocess\nsubprocess.Popen(['sleep', '1000'])\n"
    assert base.script(script).run(prefix=WITHOUT_PROC, **mark).status == 0
    eventually(lambda: processes_with(f"SM_TEST_MARK={base.root}") == [], "no process is left")

"""A stop of a script whose top process dies of the signal: what saves keeps the whole grace."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests import hosts
from tests.harness import Base, Running, eventually, processes_with

SAVE = """
import os, signal, sys
signals = []
signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
print("ready", flush=True)
while not signals:
    signal.pause()
for step in range(15):  # two seconds, in which a second signal would be seen
    print("saving", step, flush=True)
    signal.sigtimedwait([signal.SIGUSR2], 0.1)
with open(os.path.join(os.environ["SM_MODEL_DIR"], "saved"), "w") as file:
    file.write(str(len(signals)))
print("saved", flush=True)
"""
"""Saves when it is asked to stop, which takes a while, and counts the requests."""

SHELLS = {
    "sh": "python3 save.py; echo x\n",
    "bash": "#!/bin/bash\npython3 save.py; echo x\n",
    "tee": "python3 save.py | tee log.txt\n",
    "tee of both streams": "python3 save.py 2>&1 | tee -a log.txt\n",
    "a log of the whole shell": "#!/bin/bash\nexec > >(tee log) 2>&1\npython3 save.py; echo x\n",
    "subshell": "(cd . && (python3 save.py; echo x); echo y); echo z\n",
    "background": "python3 save.py & wait; echo x\n",
    "timeout": "timeout 1000 python3 save.py; echo x\n",
    "data from a pipe": "yes | python3 save.py; echo x\n",
    "xargs": "echo save.py | xargs -n 1 python3; echo x\n",
}
PYTHONS = {
    "check_call": "import subprocess, sys\nsubprocess.check_call([sys.executable, 'save.py'])\n",
    "os.system": "import os\nos.system('python3 save.py')\n",
    "multiprocessing": (
        "import multiprocessing, runpy\n"
        "if __name__ == '__main__':\n"
        "    worker = multiprocessing.Process(target=runpy.run_path, args=('save.py',))\n"
        "    worker.start()\n"
        "    worker.join()\n"
    ),
    "a session of its own": (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, 'save.py'], start_new_session=True).wait()\n"
    ),
}


FEW = ["bash", "tee", "a session of its own"]


@pytest.fixture(params=[*SHELLS, *PYTHONS])
def wrapped(request: pytest.FixtureRequest, base: Base) -> Base:
    name = request.param
    base.write("code/save.py", SAVE)
    if name == "timeout":  # which passes each signal on twice
        base.write("code/save.py", SAVE.replace("str(len(signals))", "'1'"))
    if name in SHELLS:
        return base.script(SHELLS[name], "run.sh")
    return base.script(PYTHONS[name])


def ready(running: Running) -> Running:
    running.ready()
    return running


def test_what_saves_under_a_wrapper_keeps_the_grace_and_gets_one_signal(wrapped: Base) -> None:
    running = ready(wrapped.start())
    running.send(signal.SIGTERM)
    result = running.wait()
    assert wrapped.path("model/saved").read_text() == "1", result.log
    assert result.out.endswith(b"saved\n"), result.out
    assert result.status in (0, 143), result.log
    assert "leftover" not in result.log


@pytest.mark.parametrize("wrapped", FEW, indirect=True)
def test_the_time_limit_leaves_the_same_grace(wrapped: Base) -> None:
    wrapped.write(
        "input/config/job.json",
        {"TrainingJobName": "j", "StoppingCondition": {"MaxRuntimeInSeconds": 1}},
    )
    result = wrapped.run()
    assert wrapped.path("model/saved").read_text() == "1", result.log


@pytest.mark.parametrize("wrapped", FEW, indirect=True)
def test_checkpoints_that_are_written_after_the_wrapper_is_gone_are_sent(
    wrapped: Base, tmp_path: Path
) -> None:
    wrapped.write("code/save.py", SAVE.replace("SM_MODEL_DIR", "CHECKPOINTS"))
    local = wrapped.path("checkpoints")
    store = tmp_path / "store"
    wrapped.write(
        "input/config/job.json",
        {
            "TrainingJobName": "j",
            "CheckpointConfig": {"S3Uri": store.as_uri(), "LocalPath": str(local)},
            "Environment": {"CHECKPOINTS": str(local)},
        },
    )
    running = ready(wrapped.start())
    running.send(signal.SIGTERM)
    result = running.wait()
    assert (store / "saved").read_text() == "1", result.log


STUBBORN = SAVE.replace("range(15)", "range(10**6)")


def test_what_does_not_end_under_a_wrapper_is_killed_when_the_grace_is_over(wrapped: Base) -> None:
    wrapped.write("code/save.py", STUBBORN)
    mark = {"SM_TEST_MARK": str(wrapped.root)}
    running = ready(wrapped.start(SM_RUNTIME_STOP_GRACE_SECONDS="1", **mark))
    running.send(signal.SIGTERM)
    result = running.wait()
    assert result.status in (0, 143)
    assert "killed the script: it did not stop in time" in result.log
    assert result.out.count(b"saving") > 5  # it had its second
    assert processes_with(f"SM_TEST_MARK={wrapped.root}") == []


def test_a_second_interrupt_ends_what_saves_under_a_wrapper(base: Base) -> None:
    base.write("code/save.py", STUBBORN.replace("SIGTERM", "SIGINT"))
    running = ready(base.script("python3 save.py; echo x\n", "run.sh").start())
    running.send(signal.SIGINT)
    running.ready(b"saving 3")
    running.send(signal.SIGINT)
    assert running.wait().status == 130


def test_a_launcher_of_ones_own_is_such_a_wrapper(base: Base) -> None:
    launcher = ["bash", "-c", '"$@"; echo x', "bash", "{python}", "{script}", "{args}"]
    running = ready(base.script(SAVE).start(SM_RUNTIME_LAUNCHER=json.dumps(launcher)))
    running.send(signal.SIGTERM)
    result = running.wait()
    assert base.path("model/saved").read_text() == "1", result.log


@pytest.mark.parametrize("name", FEW)
def test_on_several_hosts_each_keeps_its_grace(cluster: hosts.Cluster, name: str) -> None:
    """The wrapper of the first host is gone at once, the saving of the second takes longer."""
    for number, base in enumerate(cluster.bases):
        base.write("code/save.py", SAVE if number == 0 else SAVE.replace("range(15)", "range(30)"))
        if name in SHELLS:
            base.script(SHELLS[name], "run.sh")
        else:
            base.script(PYTHONS[name])
    launcher = ["bash", "-c", '"$@"; echo x', "bash", "{python}", "{script}", "{args}"]
    plain = ["{python}", "{script}", "{args}"]
    words = launcher if name == "bash" else plain
    if name in SHELLS:
        words = ["bash", "{script}"]
    cluster.start(SM_RUNTIME_LAUNCHER=json.dumps(words)).ready()
    cluster.running[0].send(signal.SIGTERM)
    results = cluster.wait()
    for base, result in zip(cluster.bases, results, strict=True):
        assert base.path("model/saved").read_text() == "1", hosts.logs(results)
        assert result.status in (0, 143), hosts.logs(results)


@pytest.mark.parametrize("name", ["bash", "tee"])
def test_ranks_of_mpi_keep_their_grace_under_a_wrapper(cluster: hosts.Cluster, name: str) -> None:
    """The last rank takes longer than the others."""
    own = 'os.environ["OMPI_COMM_WORLD_RANK"]'
    save = SAVE.replace('"saved")', f'"saved" + {own})')
    save = save.replace("range(15)", f"range(30 if {own} == '3' else 15)")
    for base in cluster.bases:
        base.write("code/save.py", save)
        base.script(SHELLS[name], "run.sh").hyperparameters(
            sagemaker_mpi_enabled="true", sagemaker_mpi_num_of_processes_per_host="2"
        )
        del base.environ["SM_RUNTIME_LAUNCHER"]
    cluster.start()
    for running in cluster.running.values():
        eventually(
            lambda r=running: r.out.count(b"ready") == 2 or r.process.poll() is not None, "2", 60
        )
    cluster.running[0].send(signal.SIGTERM)
    results = cluster.wait()
    saved = [{path.name for path in base.path("model").iterdir()} for base in cluster.bases]
    assert saved == [{"saved0", "saved1"}, {"saved2", "saved3"}], hosts.logs(results)
    assert {p.read_text() for base in cluster.bases for p in base.path("model").iterdir()} == {"1"}


def test_without_a_request_what_is_left_behind_is_ended_at_once(base: Base) -> None:
    base.write("code/save.py", SAVE)
    script = "python3 save.py &\nuntil [ -e /proc/$!/fd/1 ]; do :; done; exit 0\n"
    running = base.script(script, "run.sh").start(SM_RUNTIME_LEFTOVER_GRACE_SECONDS="0.3")
    result = running.wait()
    assert result.status == 0
    assert "ended 1 leftover process" in result.log
    assert not base.path("model/saved").exists()


def test_a_stop_that_comes_while_leftovers_are_ended_changes_nothing(base: Base) -> None:
    base.write("code/save.py", STUBBORN)
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, 'save.py'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print('ready', flush=True)\n"
    )
    running = ready(base.script(script).start(SM_RUNTIME_LEFTOVER_GRACE_SECONDS="2"))
    eventually(lambda: b"leftover" in running.err or running.process.poll() is None, "the end")
    running.send(signal.SIGTERM)
    assert running.wait().status in (0, 143)

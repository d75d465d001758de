"""Stop requests, time limits and stack dumps, as PID 1 and not, with and without an init."""

from __future__ import annotations

import json
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.harness import Base, Running, eventually

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
MODES = {
    "child": (),
    "pid-1": UNSHARE,
    "under-tini": (*UNSHARE, "tini", "--"),
}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return MODES[request.param]


def stop(running: Running, mode: tuple[str, ...], number: signal.Signals) -> None:
    """Send a signal to the container's first process, as an engine does."""
    if not mode:
        running.send(number)
        return
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    first = eventually(lambda: children.read_text().split(), "the first process of the namespace")
    import os

    os.kill(int(first[0]), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("is_pid_1", [False, True], ids=["child", "pid-1"])
def test_a_stop_that_comes_before_the_runtime_has_its_handlers_is_kept(
    base: Base, number: signal.Signals, is_pid_1: bool
) -> None:
    """It comes while the modules are being imported; the kernel takes none for PID 1 by default."""
    trace = f"strace -D -qq -o /dev/null -P /proc/self/comm -e inject=openat:signal={number.name}"
    prefix = (*(UNSHARE if is_pid_1 else ()), *trace.split())
    result = base.script("print('ran')").run(prefix=prefix)
    assert result.status == 143, result.log
    assert b"ran" not in result.out
    assert f"stopped by {number.name} before the script started" in base.failure()
    assert "Traceback" not in result.log


SAVES = """
import os, signal, sys
def save(number, frame):
    with open(os.path.join(os.environ["SM_MODEL_DIR"], "saved"), "w") as file:
        file.write(signal.Signals(number).name)
    sys.exit(0)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, save)
print("ready", flush=True)
while True:
    signal.pause()
"""
IGNORES = """
import signal
import sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"])
def test_a_stop_signal_reaches_the_script_which_saves_and_ends_with_0(
    base: Base, mode: tuple[str, ...], name: str
) -> None:
    running = base.script(SAVES).start(prefix=mode)
    running.ready()
    stop(running, mode, signal.Signals[name])
    result = running.wait()
    assert result.status == 0, result.log
    assert base.path("model/saved").read_text() == name
    assert f"stopped by {name}" in result.log
    assert base.path("output/success").exists()


def test_a_script_that_dies_of_the_signal_gives_128_plus_it(
    base: Base, mode: tuple[str, ...]
) -> None:
    running = base.script(
        "import signal\nprint('ready', flush=True)\nwhile True: signal.pause()"
    ).start(prefix=mode)
    running.ready()
    stop(running, mode, signal.SIGTERM)
    assert running.wait().status == 143
    assert "stopped by SIGTERM" in base.failure()


def test_a_script_that_ignores_the_stop_is_killed_when_the_grace_is_over(
    base: Base, mode: tuple[str, ...]
) -> None:
    running = base.script(IGNORES).start(prefix=mode, SM_RUNTIME_STOP_GRACE_SECONDS="0.5")
    running.ready()
    stop(running, mode, signal.SIGTERM)
    result = running.wait()
    assert result.status == 143
    assert "killed the script: it did not stop in time" in result.log
    assert base.failure().splitlines()[0].startswith("ExecuteUserScriptError: stopped by SIGTERM")
    assert base.failure_json()["signal"] == "SIGKILL"


def test_the_signal_reaches_the_whole_group_of_a_shell_script(
    base: Base, mode: tuple[str, ...]
) -> None:
    base.write("code/save.py", SAVES)
    base.script("python3 save.py & python3 save.py & wait; wait; exit 0\n", "run.sh")
    running = base.start(prefix=mode)
    eventually(lambda: running.out.count(b"ready") == 2, "both children are ready")
    stop(running, mode, signal.SIGTERM)
    running.wait()
    assert base.path("model/saved").read_text() == "SIGTERM"


def test_a_stop_while_requirements_are_installed_ends_the_installer(base: Base) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an index that never answers
        port = silent.getsockname()[1]
        base.write("code/requirements.txt", "nosuchpackage\n")
        running = base.script("print('ran')").start(
            PIP_INDEX_URL=f"http://127.0.0.1:{port}/simple", PIP_DEFAULT_TIMEOUT="60"
        )
        connection, _ = silent.accept()
        with connection:
            running.send(signal.SIGTERM)
            result = running.wait()
    assert (result.status, result.out) == (143, b"")
    assert base.failure().startswith("StoppedError: stopped by SIGTERM before the script started")


def test_a_second_interrupt_kills_at_once(base: Base) -> None:
    running = base.script(
        "import signal\nsignal.signal(2, lambda *_: print('asked', flush=True))\n"
        "print('ready', flush=True)\nwhile True: signal.pause()"
    ).start()
    running.ready()
    running.send(signal.SIGINT)
    running.ready(b"asked")
    running.send(signal.SIGINT)
    assert running.wait().status == 130


def test_a_request_that_is_repeated_does_not_end_a_script_that_has_saved(base: Base) -> None:
    running = base.script(
        "import signal, sys\n"
        "def save(number, frame):\n"
        "    signal.signal(number, signal.SIG_DFL)  # as in a process that is about to exit\n"
        "    print('asked', flush=True)\n"
        "    sys.stdin.read()\n"
        "    if signal.sigtimedwait([signal.SIGUSR2], 0.5) is None:\n"
        "        sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('ready', flush=True)\n"
        "while True: signal.pause()"
    ).start()
    running.ready()
    running.send(signal.SIGTERM)
    running.ready(b"asked")
    running.send(signal.SIGTERM)
    assert running.wait().status == 0


def test_the_stop_signal_can_be_another_one(base: Base) -> None:
    running = base.script(SAVES).start(SM_RUNTIME_STOP_SIGNAL="INT")
    running.ready()
    running.send(signal.SIGTERM)
    assert running.wait().status == 0
    assert base.path("model/saved").read_text() == "SIGINT"


def test_a_stop_is_passed_on_while_nobody_reads_the_log(base: Base) -> None:
    """The relay is stuck in its write; the signal must not wait for it."""
    running = base.script(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: open('/proc/self/cwd/../model/got', 'w'))\n"
        "print('ready', flush=True)\n"
        "line = 'x' * 1000 + '\\n'\n"
        "import threading\n"
        "threading.Thread(target=lambda: [os.write(1, line.encode()) for _ in range(9000)],"
        " daemon=True).start()\n"
        "while True: signal.pause()"
    ).start(prefix=(), SM_RUNTIME_STOP_GRACE_SECONDS="3", command=STALLED)
    running.ready(b"stalled")
    running.send(signal.SIGUSR2)  # asks the wrapper to pass SIGTERM to the runtime
    eventually(base.path("model/got").exists, "the script has the signal")
    running.ready(b"status")
    result = running.wait()
    assert json.loads(result.out.splitlines()[-1].split(b"=")[1]) == 143


STALLED = (
    sys.executable,
    "-c",
    """
import os, signal, subprocess, sys
read, write = os.pipe()
process = subprocess.Popen([sys.executable, "-m", "sm_runtime", "train"], stdout=write)
os.close(write)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
os.read(read, 6)  # ready: from now on nothing is read
print("stalled", flush=True)
signal.sigwait([signal.SIGUSR2])
process.terminate()
import threading, time
pause = threading.Event()
while not os.path.exists(os.environ["SAGEMAKER_BASE_DIR"] + "/model/got"):
    pause.wait(0.01)
def drain():
    while os.read(read, 65536):
        pass
threading.Thread(target=drain).start()
print("status=%d" % process.wait(), flush=True)
""",
)


def test_the_time_limit_of_the_request_stops_the_script(base: Base) -> None:
    base.write(
        "input/config/job.json",
        {"TrainingJobName": "j", "StoppingCondition": {"MaxRuntimeInSeconds": 1}},
    )
    result = base.script(SAVES).run()
    assert result.status == 0, result.log
    assert base.path("model/saved").read_text() == "SIGTERM"
    assert "MaxRuntimeInSeconds (1 s)" in result.log


@pytest.mark.parametrize("days", [28, 3000])
def test_a_limit_of_weeks_is_no_trouble(base: Base, days: int) -> None:
    stopping = {"MaxRuntimeInSeconds": days * 86400} if days == 28 else {}
    base.write("input/config/job.json", {"TrainingJobName": "j", "StoppingCondition": stopping})
    result = base.script("print('ran')").run(SM_RUNTIME_SILENCE_SECONDS=str(days * 86400))
    assert (result.status, result.out) == (0, b"ran\n"), result.log


def test_signals_that_were_blocked_by_whoever_started_us_arrive(base: Base) -> None:
    blocking = (
        sys.executable,
        "-c",
        "import os, signal, sys\nsignal.pthread_sigmask(0, [signal.SIGTERM, signal.SIGCHLD])\n"
        "os.execv(sys.argv[1], sys.argv[1:])",
    )
    running = base.script(SAVES).start(prefix=blocking)
    running.ready()
    running.send(signal.SIGTERM)
    assert running.wait().status == 0
    assert base.path("model/saved").read_text() == "SIGTERM"


def test_a_hangup_that_nohup_ignores_ends_nothing(base: Base) -> None:
    running = base.script(SAVES).start(prefix=("sh", "-c", 'trap "" HUP; exec "$@"', "sh"))
    running.ready()
    running.send(signal.SIGHUP)
    running.send(signal.SIGTERM)
    running.wait()
    assert base.path("model/saved").read_text() == "SIGTERM"


def test_a_script_that_is_suspended_gets_the_stop(base: Base) -> None:
    running = base.script(
        SAVES.replace("while True", "os.kill(os.getpid(), signal.SIGSTOP)\nwhile True")
    ).start()
    running.ready()
    running.send(signal.SIGTERM)
    assert running.wait().status == 0


DUMPS = """
import signal, subprocess, sys, threading
def waiting_for_the_barrier():
    while True: signal.pause()
child = subprocess.Popen([sys.executable, "-c", '''
import signal
import sys
def inside_the_data_loader():
    print("ready", flush=True)
    while True: signal.pause()
inside_the_data_loader()
'''])
shell = subprocess.Popen(["sh", "-c", "echo ready; exec sleep 1000"])
waiting_for_the_barrier()
"""


def test_sigusr1_dumps_the_stacks_of_every_python_process_and_ends_none(base: Base) -> None:
    running = base.script(DUMPS).start()
    eventually(lambda: running.out.count(b"ready") == 2, "both children are ready")
    running.send(signal.SIGUSR1)
    for name in (b"waiting_for_the_barrier", b"inside_the_data_loader"):
        eventually(lambda name=name: name in running.err, f"the stack of {name!r}")
    stacks = base.path("output/data/stacks.txt")
    eventually(
        lambda: stacks.exists() and "waiting_for_the_barrier" in stacks.read_text(),
        "the stacks are kept",
    )
    assert running.process.poll() is None
    running.send(signal.SIGTERM)
    assert running.wait().status == 143


def test_a_handler_of_the_scripts_own_gets_sigusr1(base: Base) -> None:
    running = base.script(
        "import signal, sys\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))\n"
        "print('ready', flush=True)\nwhile True: signal.pause()"
    ).start()
    running.ready()
    running.send(signal.SIGUSR1)
    assert running.wait().status == 7


def test_silence_can_dump_the_stacks_and_fail_the_job(base: Base) -> None:
    result = base.script(
        "import signal\ndef hangs():\n    while True: signal.pause()\nhangs()"
    ).run(SM_RUNTIME_SILENCE_SECONDS="0.5", SM_RUNTIME_SILENCE_FAILS="1")
    assert result.status == 143
    assert "in hangs" in result.log, result.log
    assert "no output for 0.5 s" in base.failure()


def test_a_sitecustomize_of_the_users_still_runs(base: Base, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import sys; sys.customized = True")
    result = base.script("import sys; print(sys.customized)").run(PYTHONPATH=str(site))
    assert (result.status, result.out) == (0, b"True\n"), result.log

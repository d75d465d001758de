"""A server in trouble: workers that hang or never start, memory that is short, orphans."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness import Base, control_group, eventually, processes_with
from tests.jobs.test_serve import ECHO, code
from tests.jobs.test_signals import UNSHARE
from tests.serve import Reply, Serving, children, serving

MIB = 2**20
WAITS = """
import os, pathlib, time
def handler(data, context):
    asked = data.read().decode()
    while asked and not pathlib.Path(asked).exists():
        pass  # it keeps the CPU and Python's lock busy
    return str(os.getpid()), "text/plain"
"""


def gauge(server: Serving, name: str) -> float:
    lines = server.get("/metrics").body.decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"sm_runtime_{name} "))


def test_a_worker_that_is_not_ready_in_time_ends_the_server(base: Base) -> None:
    text = ECHO + "\ntime.sleep(600)\n"
    with serving(code(base, text), ready=False, SAGEMAKER_STARTUP_TIMEOUT="0.5") as server:
        result = server.end()
    assert result.status == 1
    last = result.log.splitlines()[-1]
    assert "the model was not ready in 0.5 s (SAGEMAKER_STARTUP_TIMEOUT)" in last


def test_another_worker_that_is_not_ready_in_time_is_tried_again(base: Base) -> None:
    """The first one starts, the second hangs, the third starts."""
    count = base.path("count")
    text = f"{ECHO}\ncount = open({str(count)!r}, 'a+')\ncount.write('x')\ncount.flush()\n"
    text += f"time.sleep(600 if os.path.getsize({str(count)!r}) == 2 else 0)\n"
    with serving(code(base, text), SAGEMAKER_STARTUP_TIMEOUT="5") as server:
        server.ask(body='{"die": true}')
        eventually(lambda: server.ping() == 503, "no worker is there")
        assert server.predict({"a": 1})["a"] == 1
        assert "was not ready in 5 s (SAGEMAKER_STARTUP_TIMEOUT); the next attempt" in server.log
    assert count.read_text() == "xxx"


@pytest.mark.parametrize("threads", [1, 3])
def test_nothing_waits_behind_a_handler_that_hangs(base: Base, threads: int) -> None:
    """What its own code has no thread for is not given to a worker: it would hang there, too."""
    go = base.path("go")
    with (
        serving(code(base, WAITS), SAGEMAKER_GUNICORN_THREADS=str(threads)) as server,
        ThreadPoolExecutor(20) as clients,
    ):
        (before,) = server.workers()
        hang = [clients.submit(server.ask, body=str(go)) for _ in range(threads)]
        eventually(lambda: gauge(server, "under_way") == threads, "they are under way")
        healthy = [clients.submit(server.ask) for _ in range(10)]
        eventually(lambda: gauge(server, "waiting") == 10, "the others wait")
        assert gauge(server, "under_way") == threads
        os.kill(before, signal.SIGKILL)
        assert [each.result().status for each in hang] == [502] * threads
        assert {each.result().status for each in healthy} == {200}
        assert str(before).encode() not in {each.result().body for each in healthy}


def test_a_hung_handler_costs_its_own_request_alone(base: Base) -> None:
    never = str(base.path("never"))
    limit = {"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "8", "SAGEMAKER_MODEL_SERVER_WORKERS": "2"}
    with serving(code(base, WAITS), **limit) as server, ThreadPoolExecutor(20) as clients:
        before = set(server.workers())
        hung = clients.submit(server.ask, body=never)
        eventually(lambda: gauge(server, "under_way") == 1, "it is under way")
        while not hung.done():  # the other worker answers
            assert server.ask().status == 200
        assert hung.result().status == 504
        eventually(lambda: len(set(server.workers()) - before) == 1, "there is another worker")
        eventually(lambda: len(before & set(server.workers())) == 1, "the hung one is gone", 30)
        assert gauge(server, "workers_replaced") == 1
        assert server.ask().status == 200


def test_pings_and_counts_are_answered_while_the_workers_compute(base: Base) -> None:
    go = base.path("go")
    with serving(code(base, WAITS)) as server, ThreadPoolExecutor(4) as clients:
        busy = [clients.submit(server.ask, body=str(go)) for _ in range(4)]
        eventually(lambda: gauge(server, "waiting") == 3, "all are there")
        assert [server.ping() for _ in range(20)] == [200] * 20
        assert server.get("/execution-parameters").status == 200
        assert not any(each.done() for each in busy)
        go.touch()
        assert [each.result().status for each in busy] == [200] * 4


def test_sigusr1_to_a_worker_dumps_its_stacks(base: Base) -> None:
    go = base.path("go")
    with serving(code(base, WAITS)) as server, ThreadPoolExecutor(1) as clients:
        busy = clients.submit(server.ask, body=str(go))
        eventually(lambda: gauge(server, "under_way") == 1, "it is under way")
        where = f'File "{base.path("model/code/inference.py")}", line'

        def is_dumped() -> bool:
            os.kill(server.workers()[0], signal.SIGUSR1)  # it may not have begun
            return where in server.log and "in handler" in server.log

        eventually(is_dumped, "its stack")
        go.touch()
        assert busy.result().status == 200


def test_each_request_has_a_line_where_that_is_asked_for(base: Base) -> None:
    with serving(code(base), SM_RUNTIME_ACCESS_LOG="true") as server:
        server.ping()
        server.predict({})
        server.ask("/nothing")
        eventually(lambda: "POST /nothing from 127.0.0.1: 404 in" in server.log, "the last line")
        assert server.log.count("POST /invocations from 127.0.0.1: 200 in") == 1
        assert "/ping" not in server.log.partition("ready after")[2].replace("/ping,", "")


def test_a_body_without_limit_may_come_in_chunks(base: Base) -> None:
    text = "def handler(data, context):\n    return str(len(data.read())), 'text/plain'\n"
    with serving(code(base, text), SAGEMAKER_MAX_PAYLOAD_IN_MB="0") as server:
        pieces = [b"x" * MIB] * 150
        assert server.ask(body=pieces).body == b"%d" % (150 * MIB)  # type: ignore[arg-type]
        assert server.get("/execution-parameters").json()["MaxPayloadInMB"] == 0


def first(server: Serving) -> int:
    """Return PID 1 of the namespace that a server is in."""
    (found,) = eventually(lambda: children(server.running.pid), "the first process")
    return int(found)


def test_as_pid_1_it_reaps_what_is_left_to_it_and_stops(base: Base) -> None:
    text = """
import subprocess
def handler(data, context):
    subprocess.run(["sh", "-c", "sleep 600 >/dev/null 2>&1 &"], check=True)
    return "left", "text/plain"
"""
    with serving(code(base, text), prefix=UNSHARE) as server:
        pid_1 = first(server)
        (front,) = children(pid_1)
        for _ in range(3):
            assert server.ask().body == b"left"
        orphans = set(eventually(lambda: len(children(pid_1)) == 4 and children(pid_1), "orphans"))
        for orphan in orphans - {front}:
            os.kill(orphan, signal.SIGKILL)
        eventually(lambda: children(pid_1) == [front], "they are reaped")
        os.kill(pid_1, signal.SIGTERM)
        result = server.running.wait(20)
    assert result.status == 0, result.log
    assert "stopped: all requests are answered" in result.log


def test_as_pid_1_it_ends_with_the_servers_status(base: Base) -> None:
    with serving(base, ready=False, prefix=UNSHARE) as server:
        assert server.end().status == 1
    with serving(code(base), prefix=UNSHARE) as server:
        os.kill(children(first(server))[0], signal.SIGKILL)
        assert server.end().status == 128 + signal.SIGKILL


# ------------------------------------------------------------------ the memory of many models


def load(server: Serving, base: Base, name: str) -> Reply:
    url = str(base.path("models", name, "model"))
    return server.ask("/models", json.dumps({"model_name": name, "url": url}))


def listed(server: Serving) -> list[str]:
    return [model["modelName"] for model in server.get("/models").json()["models"]]


def holding(base: Base, name: str, held: int, *, files: int = 0) -> None:
    """Write a model that holds so many bytes, and a file of so many beside it, which is empty."""
    base.write(f"models/{name}/model/code/inference.py", f"{ECHO}\nHELD = b'x' * {held}\n# {name}")
    with base.path(f"models/{name}/model/weights").open("wb") as file:
        file.truncate(files)


@pytest.mark.parametrize("evict", ["false", "true"])
def test_a_model_that_never_fits_is_507(base: Base, evict: str) -> None:
    holding(base, "small", 0)
    holding(base, "huge", 0, files=2**43)
    more = {"SAGEMAKER_MULTI_MODEL": "true", "SM_RUNTIME_EVICT_MODELS": evict}
    with serving(base, **more) as server:
        assert load(server, base, "small").status == 200
        reply = load(server, base, "huge")
        assert (reply.status, "not enough memory" in reply.error) == (507, True)
        assert listed(server) == ([] if evict == "true" else ["small"])
        assert load(server, base, "small").status == (200 if evict == "true" else 409)


@pytest.mark.parametrize("evict", ["false", "true"])
def test_the_model_that_was_used_least_recently_makes_room(base: Base, evict: str) -> None:
    for name in ("one", "two"):
        holding(base, name, 200 * MIB)
    holding(base, "more", 0, files=512 * MIB)
    limit = str(1000 * MIB)
    more = {"SAGEMAKER_MULTI_MODEL": "true", "SM_RUNTIME_EVICT_MODELS": evict}
    with (
        control_group("memory", {"memory.limit_in_bytes": limit}, {"memory.max": limit}) as prefix,
        serving(base, prefix=prefix, **more) as server,
    ):
        assert {load(server, base, name).status for name in ("one", "two")} == {200}
        assert server.ask("/models/one/invoke", "{}").status == 200
        before = server.workers()
        reply = load(server, base, "more")
        if evict == "false":
            assert (reply.status, listed(server)) == (507, ["one", "two"])
            assert server.workers() == before
        else:
            assert (reply.status, listed(server)) == (200, ["more", "one"])
            assert server.ask("/models/two/invoke", "{}").status == 404
            assert len(server.workers()) == 2


def resident(pid: int) -> int:
    """Return the KiB that a process and all below it hold."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    own = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return own + sum(map(resident, children(pid)))


def test_nothing_is_left_of_models_that_were_unloaded(base: Base) -> None:
    for number in range(22):
        holding(base, str(number), 20 * MIB)
    with serving(base, SAGEMAKER_MULTI_MODEL="true") as server:
        for number in range(3):  # what the first ones import stays
            assert load(server, base, str(number)).status == 200
            assert server.ask(f"/models/{number}/invoke", "{}").status == 200
            assert server.ask(f"/models/{number}", method="DELETE").status == 200
        start = resident(server.running.pid)
        for number in range(22):
            assert load(server, base, str(number)).status == 200
            assert server.ask(f"/models/{number}/invoke", "{}").status == 200
            if number >= 3:
                assert server.ask(f"/models/{number - 3}", method="DELETE").status == 200
            assert len(server.workers()) == min(number + 1, 3)
        assert resident(server.running.pid) > 2 * start
        for name in listed(server):
            assert server.ask(f"/models/{name}", method="DELETE").status == 200
        assert (server.workers(), listed(server)) == ([], [])
        assert resident(server.running.pid) < 1.05 * start


# ------------------------------------------------------------------ stops before it is ready


def test_a_stop_while_the_model_is_loaded_leaves_nothing(base: Base) -> None:
    with serving(code(base, ECHO + "\ntime.sleep(600)\n"), ready=False) as server:
        eventually(server.workers, "it is being loaded")
        (worker,) = server.workers()
        server.running.send(signal.SIGTERM)
        assert server.running.wait(10).status == 0
    eventually(lambda: not Path(f"/proc/{worker}").exists(), "the worker is gone")


def test_a_stop_while_pip_runs_leaves_nothing(base: Base) -> None:
    marker = str(base.path("model/code/slow"))
    base.write("model/code/slow/setup.py", "import time\nopen('begun', 'w')\ntime.sleep(600)\n")
    base.write("model/code/requirements.txt", f"{marker}\n")
    options = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "MARKER": marker}
    with serving(code(base), ready=False, **options) as server:
        eventually(lambda: list(base.path("model/code/slow").glob("begun")), "pip runs", 30)
        server.running.send(signal.SIGTERM)
        assert server.running.wait(10).status == 0
    eventually(lambda: not processes_with(marker), "pip and what it has started are gone")

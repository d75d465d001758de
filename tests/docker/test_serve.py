"""``docker run -p 8080:8080 IMAGE serve``: the image answers requests for a trained model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.docker.container import Container, Ml, docker, run
from tests.docker.served import Served, accuracy, images
from tests.docker.test_restricted import RESTRICTED
from tests.harness import eventually
from tests.serve import Clients

ECHO = """
import json, os, time
def handler(data, context):
    asked = json.loads(data.read())
    time.sleep(asked.get("seconds", 0))
    held = bytearray(asked.get("bytes", 0))
    return json.dumps({"pid": os.getpid(), **asked}), "application/json"
"""


def code(ml: Ml, text: str = ECHO) -> tuple[str, ...]:
    """Put handlers in place; return the options that mount them."""
    ml.write("model/code/inference.py", text)
    return mounted(ml.root / "model")


def mounted(model: Path) -> tuple[str, ...]:
    return "-v", f"{model}:/opt/ml/model:ro"


def curl(url: str, *arguments: str) -> bytes:
    command = ("curl", "-sS", "--fail-with-body", *arguments, url)
    return subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=True).stdout


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_the_examples_model_answers_curl(
    cpu_image: str, fashion_mnist_model: Ml, tmp_path: Path, form: str
) -> None:
    folder = fashion_mnist_model.root / "model"
    if form == "archive":
        folder = fashion_mnist_model.root / "artifacts/fashion-mnist/output"
        assert "model.tar.gz" in os.listdir(folder)
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"instances": images(200)}), encoding="utf-8")
    with Served(cpu_image, *mounted(folder)) as server:
        server.wait_until_ready()
        json_type = ("-H", "Content-Type: application/json", "--data-binary", f"@{body}")
        url = f"http://127.0.0.1:{server.port}/invocations"
        assert accuracy(curl(url, *json_type)) > 0.7
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/model:predict"
        assert accuracy(curl(url, *json_type)) > 0.7
        assert curl(f"http://127.0.0.1:{server.port}/ping") == b""
        assert server.stop(10) == 0, server.log()
        assert [path for path in server.changes() if path.startswith("/tmp/")] == []


def test_no_right_and_no_network_is_needed(cpu_image: str, fashion_mnist_model: Ml) -> None:
    options = (*RESTRICTED, *mounted(fashion_mnist_model.root / "model"))
    with Container(cpu_image, "serve", options=options) as server:
        server.ready("ready after")
        body = json.dumps({"instances": images(1)})
        url = "http://127.0.0.1:8080/invocations"
        words = ("curl", "-sS", "-H", "Content-Type: application/json", "-d", body, url)
        assert len(json.loads(docker("exec", server.name, *words))["predictions"][0]) == 10
        assert server.stop(10) == 0, server.log()


@pytest.mark.parametrize("init", [(), ("--init",), ("--entrypoint", "serve")], ids=str)
def test_a_stop_under_load_resets_no_request(cpu_image: str, ml: Ml, init: tuple[str, ...]) -> None:
    options = (*code(ml), *init, "-e", "SAGEMAKER_GUNICORN_THREADS=64")
    with Served(cpu_image, *options) as server:
        server.wait_until_ready().without_proxy()
        clients = Clients(server, 64, '{"seconds": 2}')
        eventually(lambda: len(clients.statuses) > 64, "there is load")
        assert server.stop(10) == 0, server.log()
        clients.stop()
        assert "stopped: all requests are answered" in server.log()
    assert clients.broken == []
    assert set(clients.statuses) == {200}


BROKEN = {
    "empty": ({"model/notes": ""}, "holds no model, only notes"),
    "cut off": ({"model/1/saved_model.pb": b"\x08\x01\x12\xff"}, "/opt/ml/model/1/saved_model.pb"),
    "syntax": ({"model/code/inference.py": "def handler(:"}, "inference.py, line 1: SyntaxError"),
    "no handler": ({"model/code/inference.py": "def handle(): 1"}, "rename handle to handler"),
    "raises": ({"model/code/inference.py": ECHO + "raise RuntimeError('no luck')"}, "no luck"),
    "elsewhere": ({"model/export/code/inference.py": ECHO}, "/opt/ml/model/code/inference.py"),
    "wrong pin": (
        {
            "model/code/inference.py": ECHO,
            "model/code/requirements.txt": "no-such-package-of-ours==1.2.3\n",
        },
        "no-such-package-of-ours==1.2.3",
    ),
    "archive": ({"model/model.tar.gz": b"no archive"}, "/opt/ml/model/model.tar.gz"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_served_ends_with_its_cause_as_the_last_line(
    cpu_image: str, ml: Ml, name: str
) -> None:
    files, cause = BROKEN[name]
    for path, content in files.items():
        ml.write(path, content)
    result = run(cpu_image, "serve", options=(*ml.mount, "-e", "PIP_RETRIES=0"))
    assert result.status == 1
    last = result.err.rstrip().splitlines()[-1]
    assert cause in last, result.err
    assert "Traceback" not in last


def test_a_worker_that_is_killed_is_replaced_under_load(
    cpu_image: str, fashion_mnist_model: Ml
) -> None:
    options = (*mounted(fashion_mnist_model.root / "model"), "-e", "SAGEMAKER_GUNICORN_WORKERS=2")
    with Served(cpu_image, *options) as server:
        server.wait_until_ready().without_proxy()
        clients = Clients(server, 16, json.dumps({"instances": images(1)}))
        eventually(lambda: len(clients.statuses) > 100, "there is load")
        killed = server.workers()[0]
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: "another one is started" in server.log(), "its end is seen")
        assert server.ping() == 200
        eventually(lambda: len(server.workers()) == 2, "there is another one")
        eventually(lambda: killed not in server.workers(), "the dead is gone")
        count = len(clients.statuses)
        eventually(lambda: len(clients.statuses) > count + 100, "the load goes on")
        clients.stop()
    assert clients.broken == []
    failed = [status for status in clients.statuses if status != 200]
    assert set(failed) <= {502}
    assert len(failed) <= 6  # what one worker holds


def test_two_servers_share_a_machine(cpu_image: str, tmp_path: Path) -> None:
    """Both in the machine's own network: the ports that are asked for, and none of the other's."""
    servers: list[tuple[Container, int]] = []
    try:
        for number, port in enumerate((28080, 28180)):
            folder = Ml(tmp_path / str(number))
            folder.write("model/code/inference.py", ECHO.replace('"pid"', f'"s": {number}, "pid"'))
            ports = (f"SAGEMAKER_BIND_TO_PORT={port}", f"SAGEMAKER_SAFE_PORT_RANGE={port}-{port}9")
            options = (*folder.mount, "--network", "host", "-e", ports[0])
            servers.append((Container(cpu_image, "serve", options=options), port))
        for number, (server, port) in enumerate(servers):
            server.ready("ready after")
            words = ("-H", "Content-Type: application/json", "-d", "{}")
            answer = json.loads(curl(f"http://127.0.0.1:{port}/invocations", *words))
            assert answer["s"] == number
    finally:
        for server, _ in servers:
            server.__exit__()


def test_a_port_that_another_server_has_is_the_reason(cpu_image: str, ml: Ml) -> None:
    options = (*code(ml), "--network", "host", "-e", "SAGEMAKER_BIND_TO_PORT=28280")
    with Container(cpu_image, "serve", options=options) as first:
        first.ready("ready after")
        result = run(cpu_image, "serve", options=options)
    assert result.status == 1
    last = result.err.splitlines()[-1]
    assert "port 28280 (SAGEMAKER_BIND_TO_PORT)" in last
    assert "Address already in use" not in result.err.replace(last, "")


def test_four_workers_share_the_work(cpu_image: str, fashion_mnist_model: Ml) -> None:
    options = (*mounted(fashion_mnist_model.root / "model"), "-e", "SAGEMAKER_GUNICORN_WORKERS=4")
    with Served(cpu_image, *options) as server:
        server.wait_until_ready().without_proxy()
        assert len(server.workers()) == 4
        body = json.dumps({"instances": images(4)})
        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda _: server.ask(body=body, seconds=5), range(1000)))
        assert {reply.status for reply in replies} == {200}
        text = server.get("/metrics").body.decode()
    assert 'sm_runtime_request_seconds_count{path="/invocations"} 1000.0' in text
    assert {accuracy(reply.body) for reply in replies} == {accuracy(replies[0].body)}


def test_a_worker_that_outgrows_the_memory_is_replaced_and_the_client_is_told(
    cpu_image: str, ml: Ml
) -> None:
    limits = ("--memory", "300m", "--memory-swap", "300m")
    with Served(cpu_image, *limits, *code(ml)) as server:
        server.wait_until_ready()
        before = server.predict({})["pid"]
        reply = server.ask(body=json.dumps({"bytes": 2**30}))
        assert (reply.status, "want of memory" in reply.error) == (502, True)
        assert server.predict({})["pid"] != before
        assert server.ping() == 200
        assert server.stop(10) == 0


def test_the_fashion_mnist_model_is_served_in_little_memory(
    cpu_image: str, fashion_mnist_model: Ml
) -> None:
    limits = ("--memory", "600m", "--memory-swap", "600m")
    with Served(cpu_image, *limits, *mounted(fashion_mnist_model.root / "model")) as server:
        server.wait_until_ready()
        body = json.dumps({"instances": images(500)})
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda _: server.ask(body=body), range(8)))
        assert {reply.status for reply in replies} == {200}


@pytest.mark.parametrize(("cpus", "workers", "threads"), [("2", 1, 2), ("2", 2, 1), ("1", 1, 1)])
def test_threads_are_the_share_of_the_cpus_that_are_granted(
    cpu_image: str, fashion_mnist_model: Ml, tmp_path: Path, cpus: str, workers: int, threads: int
) -> None:
    model = tmp_path / "model"
    shutil.copytree(fashion_mnist_model.root / "model", model)
    (model / "code").mkdir()
    (model / "code/inference.py").write_text(
        "import tensorflow as tf\n"
        "def handler(data, context):\n"
        "    return str(tf.config.threading.get_intra_op_parallelism_threads()), 'text/plain'\n",
        encoding="utf-8",
    )
    options = ("--cpus", cpus, "-e", f"SAGEMAKER_GUNICORN_WORKERS={workers}")
    with Served(cpu_image, *options, *mounted(model)) as server:
        server.wait_until_ready()
        assert server.ask(body="{}").body == str(threads).encode()


def test_many_models_are_loaded_asked_and_unloaded(
    cpu_image: str, fashion_mnist_model: Ml, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        shutil.copytree(fashion_mnist_model.root / "model", tmp_path / f"models/{name}/model")
    mount = ("-v", f"{tmp_path / 'models'}:/opt/ml/models:ro")
    with Served(cpu_image, *mount, "-e", "SAGEMAKER_MULTI_MODEL=true") as server:
        server.wait_until_ready()
        for name in ("one", "two"):
            asked = {"model_name": name, "url": f"/opt/ml/models/{name}/model"}
            assert server.ask("/models", json.dumps(asked)).status == 200
        reply = server.ask("/models/two/invoke", json.dumps({"instances": images(100)}))
        assert accuracy(reply.body) > 0.7
        assert len(server.workers()) == 2
        assert server.ask("/models/one", method="DELETE").status == 200
        assert len(server.workers()) == 1
        assert server.stop(10) == 0, server.log()


def test_a_stop_while_the_model_is_loaded_ends_the_server(cpu_image: str, ml: Ml) -> None:
    with Served(cpu_image, *code(ml, ECHO + "time.sleep(600)\n")) as server:
        eventually(lambda: server.ping() == 503, "the port is open")
        waiting = threading.Thread(target=server.ask, kwargs={"body": "{}"})
        waiting.start()
        assert server.stop(10) == 0, server.log()
        waiting.join()

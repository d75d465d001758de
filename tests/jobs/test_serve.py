"""The server itself: its life, its limits, its workers. The models are the user's own code."""

import contextlib
import http.client
import json
import os
import signal
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness import Base, eventually
from tests.serve import Clients, serving

ECHO = """
import json, os, time
def handler(data, context):
    asked = json.loads(data.read())
    time.sleep(asked.get("seconds", 0))
    if asked.get("die"):
        os._exit(3)
    return json.dumps({"pid": os.getpid(), **asked}), "application/json"
"""


def code(base: Base, text: str = ECHO) -> Base:
    base.write("model/code/inference.py", text)
    return base


def test_a_server_answers_until_it_is_asked_to_stop(base):
    with serving(code(base)) as server:
        assert server.ping() == 200
        assert server.get("/ping").body == b""
        assert server.predict({"a": 1})["a"] == 1
        assert server.predict({"a": 1}, port=server.rest_port)["a"] == 1
        server.running.send(signal.SIGTERM)
        result = server.running.wait(10)
    assert result.status == 0, result.log


def test_a_ping_is_answered_with_503_until_the_model_is_loaded(base):
    slow = ECHO + "\nimport pathlib\nwhile not pathlib.Path('GO').exists(): time.sleep(0.01)\n"
    go = base.path("go")
    with serving(code(base, slow.replace("GO", str(go))), ready=False) as server:
        eventually(lambda: server.ping() == 503, "the port is open")
        early = server.ask(body="{}")
        assert (early.status, early.error) == (
            503,
            "the model is not ready: GET /ping says when it is",
        )
        go.touch()
        server.wait_until_ready()
        assert server.predict({})


@pytest.mark.parametrize("text", [ECHO, ECHO + "\ntime.sleep(600)\n"], ids=["warm", "loading"])
def test_workers_end_with_a_server_that_is_killed(base, text):
    with serving(code(base, text), ready="sleep(600)" not in text) as server:
        eventually(server.workers, "it has a worker")
        (worker,) = server.workers()
        server.running.send(signal.SIGKILL)
        server.running.process.wait()
        eventually(lambda: not os.path.exists(f"/proc/{worker}"), "the worker is gone")


def test_each_worker_is_warm_before_a_ping_is_200(base):
    loads = """
import os, pathlib
def model_fn(model_dir):
    pathlib.Path(model_dir, f"loaded-{os.getpid()}").touch()
    return 1
def transform_fn(model, body, content_type, accept):
    return str(os.getpid()), "text/plain"
"""
    with serving(code(base, loads), SAGEMAKER_MODEL_SERVER_WORKERS="3") as server:
        loaded = {path.name for path in base.path("model").glob("loaded-*")}
        assert loaded == {f"loaded-{pid}" for pid in server.workers()}
        assert len(loaded) == 3


def test_what_cannot_be_loaded_ends_the_server_with_its_cause_last(base):
    with serving(code(base, ECHO + "raise RuntimeError('no luck')"), ready=False) as server:
        result = server.end()
    assert result.status == 1
    last = result.log.splitlines()[-1]
    assert "no luck" in last
    assert "inference.py" in last


def test_a_worker_that_dies_is_replaced_and_others_wait_for_it(base):
    with serving(code(base)) as server:
        (before,) = server.workers()
        reply = server.ask(body='{"die": true}')
        assert reply.status == 502
        assert "ended with status 3" in reply.error
        assert server.predict({})["pid"] != before
        assert server.ping() == 200


def test_a_killed_worker_fails_only_what_it_held(base):
    with serving(code(base), SAGEMAKER_MODEL_SERVER_WORKERS="2") as server:
        clients = Clients(server, 16, '{"seconds": 0.02}')
        eventually(lambda: len(clients.statuses) > 50, "there is load")
        os.kill(server.workers()[0], signal.SIGKILL)
        eventually(lambda: len(server.workers()) == 2, "there is another one")
        count = len(clients.statuses)
        eventually(lambda: len(clients.statuses) > count + 50, "the load goes on")
        clients.stop()
    assert not clients.broken
    failed = [status for status in clients.statuses if status != 200]
    assert set(failed) <= {502}
    assert len(failed) <= 1  # a worker holds no more than its own code has threads for


def test_a_stop_under_load_fails_no_request(base):
    with serving(code(base)) as server:
        clients = Clients(server, 32, '{"seconds": 0.01}')
        eventually(lambda: len(clients.statuses) > 50, "there is load")
        server.running.send(signal.SIGTERM)
        result = server.running.wait(10)
        clients.stop()
    assert result.status == 0, result.log
    assert not clients.broken
    assert set(clients.statuses) == {200}


def test_an_answer_that_takes_too_long_is_504_and_its_worker_is_replaced(base):
    limit = {"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "0.5"}
    with serving(code(base), **limit) as server:
        (before,) = server.workers()
        reply = server.ask(body='{"seconds": 60}')
        assert reply.status == 504
        assert "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS" in reply.error

        def another_answers() -> bool:
            reply = server.ask(body="{}")
            return reply.status == 200 and reply.json()["pid"] != before

        eventually(another_answers, "another worker answers")


@pytest.mark.parametrize("chunked", [False, True], ids=["known length", "chunked"])
def test_a_body_that_is_too_long_is_413(base, chunked):
    with serving(code(base)) as server:
        body = b" " * 7_000_000
        reply = server.ask(body=[body] if chunked else body)
        assert reply.status == 413
        assert "6291456" in reply.error
        assert "SAGEMAKER_MAX_PAYLOAD_IN_MB" in reply.error
        assert server.predict({})


def test_the_limit_of_a_body_can_be_raised(base):
    with serving(code(base), SAGEMAKER_MAX_PAYLOAD_IN_MB="20") as server:
        assert len(server.predict({"text": "x" * 15_000_000})["text"]) == 15_000_000


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/nothing", 404, "there is no /nothing here"),
        ("POST", "/ping", 405, "POST is not allowed for /ping"),
        ("DELETE", "/metrics", 405, "DELETE is not allowed for /metrics"),
        ("GET", "/models", 404, "there is no /models here"),
    ],
)
def test_an_address_that_is_none_is_an_error_in_json(base, method, path, status, words):
    with serving(code(base)) as server:
        reply = server.ask(path, method=method)
        assert (reply.status, words in reply.error) == (status, True)


def test_batch_transform_learns_its_limits(base):
    with serving(
        code(base), SAGEMAKER_MAX_CONCURRENT_TRANSFORMS="4", SAGEMAKER_MAX_PAYLOAD_IN_MB="20"
    ) as server:
        assert server.get("/execution-parameters").json() == {
            "MaxConcurrentTransforms": 4,
            "MaxPayloadInMB": 20,
        }


def test_metrics_count_what_all_workers_did_the_dead_too(base):
    with serving(code(base), SAGEMAKER_MODEL_SERVER_WORKERS="4") as server:
        for _ in range(50):
            server.predict({})
        os.kill(server.workers()[0], signal.SIGKILL)
        for _ in range(50):
            server.ask(body="{}")
        eventually(lambda: len(server.workers()) == 4, "there is another one")
        text = server.get("/metrics").body.decode()
    assert 'sm_runtime_request_seconds_count{path="/invocations"} 100.0' in text
    assert "sm_runtime_workers_replaced 1.0" in text


def test_pings_are_not_logged_and_errors_are(base):
    with serving(code(base)) as server:
        before = server.log
        for _ in range(20):
            server.ping()
        server.predict({})
        assert server.log == before
        status = server.ask(body="no JSON").status
        line = f"POST /invocations from 127.0.0.1: {status} in "
        eventually(lambda: line in server.log, "a line")


@pytest.mark.parametrize(
    "data",
    [
        b"GET",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET /ping HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20000 + b"\r\n",
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc",
    ],
    ids=["half", "TLS", "headers", "negative", "smuggling", "short"],
)
def test_what_is_no_request_is_refused_and_the_server_goes_on(base, data):
    with serving(code(base)) as server:
        answer = server.send(data)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")), answer
        assert server.predict({})


def test_a_port_that_is_taken_is_named(base):
    with serving(code(base)) as server:
        with serving(base, ready=False, SAGEMAKER_BIND_TO_PORT=str(server.port)) as second:
            result = second.end()
        assert server.predict({})
    assert result.status == 1
    assert f"port {server.port} (SAGEMAKER_BIND_TO_PORT)" in result.log.splitlines()[-1]


def test_handlers_may_ask_the_server_while_it_stops(base):
    asks = """
import time, urllib.error, urllib.request
def handler(data, context):
    time.sleep(1)
    try:
        urllib.request.urlopen(context.rest_uri, b"{}", timeout=20)
    except urllib.error.HTTPError as error:
        return str(error.code), "text/plain"
"""
    with serving(code(base, asks)) as server:
        replies = []
        thread = threading.Thread(target=lambda: replies.append(server.ask(body="{}")))
        thread.start()
        eventually(lambda: b"under_way 1" in server.get("/metrics").body, "it is under way")
        server.running.send(signal.SIGTERM)
        assert server.running.wait(10).status == 0
        thread.join()
    assert replies[0].body == b"404"


def test_a_status_that_is_none_is_the_handlers_fault(base):
    text = "def handler(data, context):\n    context.set_response_status(600)\n    return 'x'\n"
    with serving(code(base, text)) as server:
        assert server.ask(body="{}").status == 500


def test_a_stop_ends_what_is_not_answered_in_time(base):
    with serving(code(base), SM_RUNTIME_DRAIN_SECONDS="0.5") as server:
        thread = threading.Thread(target=lambda: server.ask(body='{"seconds": 600}'))
        thread.start()
        eventually(lambda: b"under_way 1" in server.get("/metrics").body, "it is under way")
        server.running.send(signal.SIGTERM)
        result = server.running.wait(8)
        thread.join()
    assert "1 requests were not answered in 0.5 s" in result.log


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


class TestManyModels:
    @pytest.fixture
    def server(self, base):
        for name in ("one", "two"):
            base.write(f"models/{name}/model/code/inference.py", ECHO + f"\n# {name}\n")
        with serving(base, SAGEMAKER_MULTI_MODEL="true") as found:
            yield found

    @staticmethod
    def load(server, base, name, url=None):
        url = url or str(base.path("models", name, "model"))
        return server.ask("/models", json.dumps({"model_name": name, "url": url}))

    def test_models_are_loaded_asked_listed_and_unloaded(self, base, server):
        assert server.get("/models").json() == {"models": []}
        assert self.load(server, base, "one").status == 200
        assert self.load(server, base, "one").status == 409
        assert self.load(server, base, "two").status == 200
        for _ in range(20):
            assert server.ask("/models/one/invoke", '{"a": 1}').json()["a"] == 1
        url = str(base.path("models/one/model"))
        assert server.get("/models/one").json() == {"modelName": "one", "modelUrl": url}
        listed = server.get("/models?limit=1").json()
        assert [model["modelName"] for model in listed["models"]] == ["one"]
        more = server.get(f"/models?next_page_token={listed['nextPageToken']}").json()
        assert [model["modelName"] for model in more["models"]] == ["two"]
        gone = server.ask("/models/one/invoke", "{}").json()["pid"]
        assert server.ask("/models/one", method="DELETE").status == 200
        assert not os.path.exists(f"/proc/{gone}")
        assert server.ask("/models/one/invoke", "{}").status == 404
        assert server.get("/models/one").status == 404
        assert server.ask("/models/two/invoke", "{}").status == 200

    def test_a_request_may_name_its_model_in_a_header(self, base, server):
        reply = server.ask(body='{"a": 1}', x_amzn_sagemaker_target_model="two")
        assert (reply.status, reply.json()["a"]) == (200, 1)
        assert "Target-Model" in server.ask(body="{}").error

    def test_a_header_may_name_an_archive_of_those_that_a_local_endpoint_mounts(self, base):
        base.path("model").mkdir(parents=True)
        for name in ("one", "two"):
            code = base.write(f"made/{name}/inference.py", ECHO + f"\n# {name}\n")
            with tarfile.open(base.path(f"model/{name}.tar.gz"), "w:gz") as archive:
                archive.add(code, "code/inference.py")
        unpacked = base.path("unpacked")
        unpacked.mkdir()
        with serving(base, SAGEMAKER_MULTI_MODEL="true", TMPDIR=str(unpacked)) as server:
            pids = set()
            for name in ("one", "two", "one"):
                reply = server.ask(body="{}", x_amzn_sagemaker_target_model=f"{name}.tar.gz")
                assert reply.status == 200, reply
                pids.add(reply.json()["pid"])
            assert len(pids) == 2
            named = {"x_amzn_sagemaker_target_model": "three.tar.gz"}
            assert server.ask(body="{}", **named).status == 404
            assert len(list(unpacked.iterdir())) == 2
            assert server.ask("/models/one.tar.gz", method="DELETE").status == 200
            assert len(list(unpacked.iterdir())) == 1
            server.running.send(signal.SIGTERM)
            server.running.wait(10)
        assert list(unpacked.iterdir()) == []

    @pytest.mark.parametrize(
        "url", ["/etc", "{}/models/../model", "{}/models/link", "{}/models", "{}/model"]
    )
    def test_a_place_outside_is_refused(self, base, server, url):
        base.path("models/link").symlink_to("/etc")
        base.path("model").mkdir()
        reply = self.load(server, base, "x", url.format(base.root))
        assert (reply.status, "is not below" in reply.error) == (400, True)

    def test_requests_for_a_model_that_is_unloaded_are_answered(self, base, server):
        self.load(server, base, "one")
        replies = []

        def ask() -> None:
            replies.append(server.ask("/models/one/invoke", '{"seconds": 0.3}').status)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        eventually(lambda: b"_waiting 5.0" in server.get("/metrics").body, "all have come")
        assert server.ask("/models/one", method="DELETE").status == 200
        for thread in threads:
            thread.join()
        assert replies == [200] * 6

    def test_what_a_model_has_started_goes_with_it(self, base, server):
        starts = ECHO + "import subprocess\nCHILD = subprocess.Popen(['sleep', '600']).pid\n"
        starts += "def handler(data, context): return str(CHILD), 'text/plain'\n"
        base.write("models/child/model/code/inference.py", starts)
        self.load(server, base, "child")
        child = int(server.ask("/models/child/invoke", "{}").body)
        server.ask("/models/child", method="DELETE")
        eventually(lambda: not is_alive(child), "it is gone")

    def test_a_model_that_is_loaded_twice_at_once_is_loaded_once(self, base, server):
        with ThreadPoolExecutor(2) as threads:
            loads = [threads.submit(self.load, server, base, "one") for _ in range(2)]
            assert sorted(load.result().status for load in loads) == [200, 409]
        assert len(server.workers()) == 1

    def test_a_model_with_a_link_to_outside_is_refused(self, base, server):
        base.path("models/one/model/assets").symlink_to("/etc")
        reply = self.load(server, base, "one")
        assert (reply.status, "assets is a link to a place" in reply.error) == (400, True)

    def test_a_model_that_cannot_be_loaded_says_why(self, base, server):
        base.write("models/bad/model/code/inference.py", ECHO + "raise RuntimeError('no luck')")
        reply = self.load(server, base, "bad")
        assert (reply.status, "no luck" in reply.error) == (500, True)
        assert self.load(server, base, "none").status == 404
        assert self.load(server, base, "x", "\0").status == 400
        assert server.ask("/models", "[" * 200_000).status == 400
        assert server.ask("/models", "[]").status == 400

    def test_requests_for_one_model_do_not_wait_for_another_one_to_load(self, base, server):
        base.write("models/slow/model/code/inference.py", ECHO + "\ntime.sleep(600)\n")
        self.load(server, base, "one")

        def load() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):  # it ends with the test
                self.load(server, base, "slow")

        threading.Thread(target=load, daemon=True).start()
        eventually(lambda: len(server.workers()) == 2, "it is being loaded")
        assert server.ask("/models/one/invoke", "{}").status == 200


def test_handlers_that_ask_the_server_itself_are_not_in_its_way(base):
    asks = """
import urllib.request
def handler(data, context):
    try:
        urllib.request.urlopen(context.rest_uri, b"{}", timeout=20)
    except urllib.error.HTTPError as error:
        return str(error.code), "text/plain"
"""
    with serving(code(base, asks)) as server:
        clients = Clients(server, 16, "{}")
        eventually(lambda: len(clients.statuses) > 100, "all are answered")
        clients.stop()
        assert server.ask(body="{}").body == b"404"  # there is no TensorFlow model to be asked
    assert set(clients.statuses) == {200}

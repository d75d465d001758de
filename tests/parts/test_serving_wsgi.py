"""``SAGEMAKER_SERVING_MODULE``: applications run by gunicorn, functions called as programs."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.s3 import free_port

SERVE = """
import logging, os, sys
from sm_runtime.job.errors import JobError
from sm_runtime.serving.wsgi import Module, serve_module

logging.basicConfig(format="%(message)s", level=20)
target, folder, port, workers = sys.argv[1:]
module = Module(target=target, folders=["/nowhere", folder], port=int(port), workers=int(workers))
try:
    sys.exit(serve_module(module, os.environ))
except JobError as error:
    sys.exit(str(error))
"""
APPLICATION = """
import os, time

def application(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        open("started", "w").close()
        time.sleep(1)
    size = 0
    while data := environ["wsgi.input"].read(1 << 20):
        size += len(data)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {size} {os.getcwd()}".encode()]

app = application
"""


@dataclass
class Server:
    process: subprocess.Popen[str]
    folder: Path
    port: int

    def ask(self, path: str, body: bytes | None = None) -> str:
        status, text = self._asked(path, body)
        assert status == 200
        return text

    def status(self, path: str, body: bytes) -> int:
        return self._asked(path, body)[0]

    def _asked(self, path: str, body: bytes | None) -> tuple[int, str]:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(line):
            line.request("GET" if body is None else "POST", path, body)
            answer = line.getresponse()
            return answer.status, answer.read().decode()

    def wait(self) -> None:
        """Until it answers."""
        while self.process.poll() is None:
            with contextlib.suppress(OSError):
                self.ask("/ping")
                return
            time.sleep(0.05)
        raise AssertionError(self.process.communicate()[0])

    def end(self) -> tuple[int, str]:
        """Return the status and the last line."""
        output = self.process.communicate(timeout=60)[0]
        return self.process.returncode, output.strip().splitlines()[-1]


@contextlib.contextmanager
def started(
    folder: Path, target: str, text: str, workers: int = 1, port: int = 0
) -> Iterator[Server]:
    (folder / "serve.py").write_text(text)
    port = port or free_port()
    process = subprocess.Popen(
        (sys.executable, "-c", SERVE, target, folder, str(port), str(workers)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield Server(process, folder, port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("target", ["serve:app", "serve"])
def test_every_path_reaches_the_application_unchanged(tmp_path: Path, target: str) -> None:
    with started(tmp_path, target, APPLICATION, workers=2) as server:
        server.wait()
        assert server.ask("/ping") == f"GET /ping 0 {tmp_path}"
        assert server.ask("/execution-parameters").startswith("GET /execution-parameters")
        body = bytes(20_000_000)
        assert server.ask("/invocations", body).startswith("POST /invocations 20000000")


def test_a_stop_lets_requests_be_answered_and_exits_with_0(tmp_path: Path) -> None:
    with started(tmp_path, "serve:app", APPLICATION) as server:
        server.wait()
        found: list[str] = []
        asking = threading.Thread(target=lambda: found.append(server.ask("/slow")))
        asking.start()
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        server.process.terminate()
        with contextlib.suppress(ConnectionRefusedError):  # once all is over
            while (status := server.status("/invocations", bytes(1_000_000))) == 200:
                pass
            assert status == 503
        asking.join()
        assert found[0].startswith("GET /slow")
        assert server.end()[0] == 0


def test_a_port_that_is_taken_is_said_before_gunicorn_starts(tmp_path: Path) -> None:
    with started(tmp_path, "serve:app", APPLICATION) as first:
        first.wait()
        with started(tmp_path, "serve:app", APPLICATION, port=first.port) as second:
            status, last = second.end()
    assert status == 1 and last.startswith(f"port {second.port} (SAGEMAKER_BIND_TO_PORT)")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named"),
        ("def f(:", "SyntaxError"),
        ("raise OSError('no model')\napp = 1", "OSError: no model"),
        ("application = 1", "Failed to find attribute 'app' in 'serve'"),
        ("app = 1", "AppImportError|callable"),
    ],
)
def test_a_module_that_cannot_be_loaded_ends_it_with_the_reason(
    tmp_path: Path, text: str, said: str
) -> None:
    import re

    with started(tmp_path, "serve:app", text) as server:
        status, last = server.end()
    assert status != 0 and last.startswith("SAGEMAKER_SERVING_MODULE=serve:app ended")
    assert re.search(said, last)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nothing:app", "there is no module nothing in "),
        ("serve.deeper:app", "there is no module serve.deeper in "),
        ("serve:", "must be module:application"),
        ("a-b:app", "must be module:application"),
    ],
)
def test_a_target_that_names_nothing_is_refused(tmp_path: Path, target: str, said: str) -> None:
    with started(tmp_path, target, APPLICATION) as server:
        status, last = server.end()
    assert status == 1 and last.startswith("SAGEMAKER_SERVING_MODULE: ") and said in last


@pytest.mark.parametrize("status", [0, 7])
def test_a_function_without_parameters_is_a_program_with_a_status_of_its_own(
    tmp_path: Path, status: int
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "inner.py").write_text(
        f"import sys\ndef run(port=8080):\n    print('it ran')\n    sys.exit({status})\n"
    )
    text = "from package.inner import run as main"
    with started(tmp_path, "serve:main", text) as server:
        found, last = server.end()
    assert found == status and last.endswith("it ran")


def test_a_program_is_asked_to_stop(tmp_path: Path) -> None:
    text = "import time\ndef main():\n    open('started', 'w').close()\n    time.sleep(600)\n"
    with started(tmp_path, "serve:main", text) as server:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        server.process.terminate()
        assert server.end()[0] == 0

"""Hostile requests: each gets an answer, and the server goes on as before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness import Base
from tests.hostile import Valid, images, run
from tests.serve import Serving, serving
from tests.serving.conftest import Make

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("default"),
]

REQUESTS = 1600
OWN_CODE = """
def model_fn(model_dir):
    return None

def predict_fn(data, model):
    return [0]
"""


def memory(server: Serving) -> int:
    """Return the MiB of all processes."""
    total = 0
    for pid in (server.running.pid, *server.workers()):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return total // 1024


def survive(server: Serving, valid: Valid, good: bytes) -> None:
    """Send hostile requests, and see that nothing has changed."""
    workers = server.workers()
    before = server.ask(body=good)
    assert before.status == 200, before
    run(server.port, valid, 400, seed=1)
    held = memory(server)
    found = run(server.port, valid, REQUESTS)
    assert found.unanswered == []
    assert found.failures == []
    assert found.requests == REQUESTS
    assert server.workers() == workers
    assert server.ask(body=good).body == before.body
    assert not valid.mark.exists()
    assert memory(server) < held + 100


@pytest.mark.parametrize("batching", ["false", "true"])
def test_a_model_survives(base: Base, made: Make, tmp_path: Path, batching: str) -> None:
    base.path("model").symlink_to(made("convolution"))
    valid = images((8, 8, 1), tmp_path / "unpickled")
    with serving(base, SAGEMAKER_TFS_ENABLE_BATCHING=batching) as server:
        survive(server, valid, valid.texts[0])


def test_a_model_of_several_signatures_survives(base: Base, made: Make, tmp_path: Path) -> None:
    base.path("model").symlink_to(made("several"))
    bodies = [
        {"signature_name": "strings", "instances": ["a", {"b64": "/w=="}]},
        {"signature_name": "mixed", "inputs": {"a": [[1, 2, 3]], "b": [1, 2, 3], "flag": True}},
        {"signature_name": "ranks", "inputs": [[1.5]]},
        {"signature_name": "product", "instances": [[1, 2, 3], [4, 5, 6]]},
    ]
    texts = [json.dumps(body).encode() for body in bodies]
    arrays = images((3,), tmp_path).arrays
    with serving(base) as server:
        survive(server, Valid(texts=texts, arrays=arrays, mark=tmp_path / "unpickled"), texts[3])


def test_own_code_behind_the_default_codec_survives(base: Base, tmp_path: Path) -> None:
    base.write("model/code/inference.py", OWN_CODE)
    valid = images((4,), tmp_path / "unpickled")
    with serving(base) as server:
        survive(server, valid, valid.texts[0])

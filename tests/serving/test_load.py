"""Batches in several threads, queues that are full, and warm-up, of the command ``serve``."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Base
from tests.serve import Reply, Serving, serving

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(300)]

WIDTH = 4000


@pytest.fixture(scope="module")
def made(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is wide (an answer has many numbers), slow, and counts its calls."""
    root = tmp_path_factory.mktemp("load")

    class Model(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.calls = tf.Variable(0, dtype=tf.int64)
            self.others = tf.Variable(0, dtype=tf.int64)

        @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, "x")])
        def wide(self, x: Any) -> Any:
            return {"y": tf.tile(x, [1, WIDTH])}

        @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, "x")])
        def slow(self, x: Any) -> Any:
            def turn(count: Any, matrix: Any) -> Any:
                return count + 1, tf.matmul(matrix, matrix) / 300.0

            matrix = tf.ones([300, 300])
            _, matrix = tf.while_loop(lambda count, _: count < 200, turn, (0, matrix))
            return {"y": x + 0.0 * matrix[0, 0]}

        @tf.function(input_signature=[tf.TensorSpec([], tf.int64, "n")])
        def count(self, n: Any) -> Any:
            return {"calls": self.calls.assign_add(1) + 0 * n}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "texts")])
        def other(self, texts: Any) -> Any:
            return {"calls": self.others.assign_add(1) + 0 * tf.size(texts, tf.int64)}

    model = Model()
    names = ("wide", "slow", "count", "other")
    tf.saved_model.save(model, str(root / "load/1"), {name: getattr(model, name) for name in names})
    return root


def placed(base: Base, made: Path) -> Base:
    shutil.copytree(made, base.path("model"))
    return base


def batching(**settings: int) -> dict[str, str]:
    named = {f"SAGEMAKER_TFS_{name.upper()}": str(value) for name, value in settings.items()}
    return {"SAGEMAKER_TFS_ENABLE_BATCHING": "true", **named}


def asked(server: Serving, signature: str, rows: list[float]) -> Reply:
    body = {"signature_name": signature, "instances": [[row] for row in rows]}
    return server.ask(body=json.dumps(body))


@pytest.mark.parametrize("threads", [1, 4])
def test_answers_of_several_batches_do_not_mix(base: Base, made: Path, threads: int) -> None:
    """Answers are longer than what a socket takes at once; rows of each are its own."""
    settings = batching(num_batch_threads=threads, max_batch_size=4)
    with serving(placed(base, made), **settings) as server, ThreadPoolExecutor(16) as clients:
        several = [[float(number)] * (1 + number % 3) for number in range(200)]
        for rows, reply in zip(
            several, clients.map(lambda rows: asked(server, "wide", rows), several), strict=True
        ):
            assert reply.json()["predictions"] == [[row] * WIDTH for row in rows]


@pytest.mark.parametrize("more", [{}, {"SAGEMAKER_BATCH": "true"}], ids=["one", "transform"])
def test_more_batches_than_may_wait_are_503(base: Base, made: Path, more: dict[str, str]) -> None:
    """Those that wait are answered; batch transform lets any number wait."""
    settings = batching(max_batch_size=1, **({} if more else {"max_enqueued_batches": 1}))
    with (
        serving(placed(base, made), **settings, **more) as server,
        ThreadPoolExecutor(24) as clients,
    ):
        replies = list(clients.map(lambda _: asked(server, "slow", [7.0]), range(24)))
        assert {reply.status for reply in replies} == ({200} if more else {200, 503})
        for reply in replies:
            if reply.status == 503:
                assert "SAGEMAKER_TFS_MAX_ENQUEUED_BATCHES" in reply.error
            else:
                assert reply.json() == {"predictions": [[7.0]]}
        assert asked(server, "slow", [1.0]).status == 200


def test_each_signature_was_called_before_the_first_request(base: Base, made: Path) -> None:
    with serving(placed(base, made)) as server:
        for name, given in (("count", 1), ("other", ["a"])):
            body = {"signature_name": name, "inputs": given}
            assert server.predict(body) == {"outputs": 2}
            assert server.predict(body) == {"outputs": 3}


def test_a_missing_module_is_known_before_the_model_is_loaded(base: Base, made: Path) -> None:
    text = "import json\nimport no_such_module\ndef input_handler(data, context):\n    pass\n"
    base.write("model/code/inference.py", text)
    shutil.copytree(made, base.path("model"), dirs_exist_ok=True)
    with serving(base, ready=False) as server:
        result = server.end()
    last = result.log.splitlines()[-1]
    assert (result.status, "no module named 'no_such_module': add no_such" in last) == (1, True)
    assert "warmed up" not in result.log

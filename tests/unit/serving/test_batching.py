"""Which requests go together, and what becomes of each."""

import gc
import weakref
from collections import deque
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from sm_runtime.serving import lanes
from sm_runtime.serving.batching import Waiting, compute, take, waiting
from sm_runtime.serving.values import RequestError, Signature, TensorSpec


def spec(name, *shape):
    return {name: TensorSpec(name=name, dtype="float32", shape=shape)}


class Doubling:
    """A model that refuses negative numbers and notes the rows of each call."""

    def __init__(self, inputs=(None, 2), outputs=(None, 2)):
        self.signatures = {
            "serve": Signature(name="serve", inputs=spec("x", *inputs), outputs=spec("y", *outputs))
        }
        self.calls = []

    def run(self, signature, inputs):
        self.calls.append(inputs["x"].shape)
        if (inputs["x"] < 0).any():
            raise RequestError("x: negative")
        return {"y": inputs["x"] * 2}


def asked(model, array, results=None):
    prepared = SimpleNamespace(model=model, signature="serve", inputs={"x": np.asarray(array)})
    results = [] if results is None else results
    return waiting(prepared, lambda result, rows: results.append((result, rows)))


def queue_of(*rows_and_keys):
    return deque(Waiting(None, None, rows, key) for rows, key in rows_and_keys)


@pytest.mark.parametrize(
    ("queue", "taken", "left"),
    [
        ([(1, "a")], [(1, "a")], []),
        ([(1, "a"), (1, "a")], [(1, "a"), (1, "a")], []),
        ([(1, "a"), (1, "b"), (2, "a")], [(1, "a"), (2, "a")], [(1, "b")]),
        ([(1, None), (1, None)], [(1, None)], [(1, None)]),
        ([(1, "a"), (1, None), (1, "a")], [(1, "a"), (1, "a")], [(1, None)]),
        ([(3, "a"), (2, "a"), (1, "a")], [(3, "a"), (1, "a")], [(2, "a")]),
        ([(9, "a"), (1, "a")], [(9, "a")], [(1, "a")]),
    ],
)
def test_the_oldest_request_takes_those_along_that_fit(queue, taken, left):
    waiting_ones = queue_of(*queue)
    found = take(waiting_ones, 4)
    assert [(item.rows, item.key) for item in found] == taken
    assert [(item.rows, item.key) for item in waiting_ones] == left


def test_requests_of_one_batch_get_their_own_rows():
    model, results = Doubling(), []
    compute([asked(model, [[1, 2]], results), asked(model, [[3, 4], [5, 6]], results)])
    assert model.calls == [(3, 2)]
    assert [(result["y"].tolist(), rows) for result, rows in results] == [
        ([[2, 4]], 3),
        ([[6, 8], [10, 12]], 3),
    ]


def test_a_request_that_the_model_refuses_fails_no_other():
    model, results = Doubling(), []
    compute([asked(model, [[value, value]], results) for value in (1, -1, 2)])
    refused = [isinstance(result, RequestError) for result, _ in results]
    assert refused == [False, True, False]
    assert results[2][0]["y"].tolist() == [[4, 4]]


def test_outputs_that_do_not_grow_with_the_rows_are_computed_singly():
    class Summing(Doubling):
        def run(self, signature, inputs):
            return {"y": inputs["x"].sum(axis=0, keepdims=True)}

    model, results = Summing(), []
    compute([asked(model, [[1, 2]], results), asked(model, [[3, 4]], results)])
    assert [result["y"].tolist() for result, _ in results] == [[[1, 2]], [[3, 4]]]


@pytest.mark.parametrize(
    ("model", "array"),
    [
        (Doubling(inputs=(2,)), [1, 2]),
        (Doubling(outputs=()), [[1, 2]]),
        (Doubling(), np.zeros((0, 2))),
        (Doubling(inputs=(None,)), 1.0),
    ],
    ids=["fixed input", "scalar output", "no rows", "scalar"],
)
def test_what_has_no_rows_is_computed_alone(model, array):
    assert asked(model, array).key is None


def test_unequal_shapes_and_types_stay_apart():
    model = Doubling(inputs=(None, None))
    arrays = [np.zeros((1, 2), "f4"), np.zeros((1, 3), "f4"), np.zeros((1, 2), "f8")]
    assert len({asked(model, array).key for array in arrays}) == 3


def test_a_request_that_fails_leaves_nothing_for_the_garbage_collector():
    array, statuses = np.full((1, 2), -1.0, "float32"), []
    inputs = weakref.ref(array)
    prepared = SimpleNamespace(model=Doubling(), signature="serve", inputs={"x": array})
    finished = partial(lanes._finish, None, lambda answer, rows: statuses.append(answer.status))
    batch = [waiting(prepared, finished)]
    del array, prepared
    gc.disable()
    try:
        compute(batch)
        batch.clear()
        assert (statuses, inputs()) == ([400], None)
    finally:
        gc.enable()

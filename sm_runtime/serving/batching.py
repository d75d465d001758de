"""Micro-batching: requests for one signature are answered by one call of the model.

A batch is what waits when the model is free, so that nobody waits who comes alone. Which requests
go together is decided by ``take``, which is pure.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sm_runtime.serving.predictor import Prepared
from sm_runtime.serving.settings import Batching
from sm_runtime.serving.values import RequestError

Outputs: TypeAlias = Mapping[str, Any]
Done: TypeAlias = Callable[[Outputs | Exception, int], None]
"""Called once with the outputs, or why there are none, and the rows of the batch."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits for its call."""

    prepared: Prepared
    done: Done
    rows: int
    key: Any
    """Equal for requests that fit into one call; None for one that must be computed alone."""


def waiting(prepared: Prepared, done: Done) -> Waiting:
    """Return a request with what decides about its neighbours."""
    signature = prepared.model.signatures[prepared.signature]
    specs = (*signature.inputs.values(), *signature.outputs.values())
    inputs = prepared.inputs
    lengths = {len(array) if array.ndim else None for array in inputs.values()}
    grows = all(spec.shape is not None and spec.shape[:1] == (None,) for spec in specs)
    rows = next(iter(lengths)) if len(lengths) == 1 else None
    if not grows or not rows:
        return Waiting(prepared, done, 1, None)
    shapes = tuple((name, inputs[name].dtype, inputs[name].shape[1:]) for name in sorted(inputs))
    return Waiting(prepared, done, rows, (id(prepared.model), prepared.signature, shapes))


def take(queue: deque[Waiting], max_rows: int) -> list[Waiting]:
    """Remove the oldest request from ``queue``, and those that fit beside it, in their order."""
    first = queue.popleft()
    if first.key is None:
        return [first]
    batch, left, rows = [first], [], first.rows
    while queue and rows < max_rows:
        other = queue.popleft()
        if other.key == first.key and rows + other.rows <= max_rows:
            batch.append(other)
            rows += other.rows
        else:
            left.append(other)
    queue.extendleft(reversed(left))
    return batch


def compute(batch: Sequence[Waiting]) -> None:
    """Answer the requests of a batch; where their common call fails, each by a call of its own."""
    import numpy as np

    first = batch[0].prepared
    if len(batch) > 1:
        rows = sum(item.rows for item in batch)
        try:
            arrays = {
                name: np.concatenate([item.prepared.inputs[name] for item in batch])
                for name in first.inputs
            }
            outputs = first.model.run(first.signature, arrays)
        except Exception:
            outputs = {}
        if outputs and all(array.ndim and len(array) == rows for array in outputs.values()):
            start = 0
            for item in batch:
                part = {name: array[start : start + item.rows] for name, array in outputs.items()}
                start += item.rows
                item.done(part, rows)
            return
    for item in batch:
        try:
            result: Outputs | Exception = item.prepared.model.run(
                item.prepared.signature, item.prepared.inputs
            )
        except Exception as error:
            result = error
        item.done(result, item.rows)
        del result  # an error, whose traceback has this frame, would hold itself, and the inputs


class Batcher:
    """Threads that compute what is submitted, in batches."""

    def __init__(self, settings: Batching, computed: Callable[[], None]) -> None:
        """``computed`` is called after the last ``done`` of each batch."""
        self._settings, self._computed = settings, computed
        self._queue: deque[Waiting] = deque()
        self._changed = threading.Condition()
        for _ in range(settings.threads):
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, prepared: Prepared, done: Done) -> None:
        """Have a request computed; ``done`` is called in another thread.

        Raises RequestError (503) where more wait than SAGEMAKER_TFS_MAX_ENQUEUED_BATCHES allows.
        """
        item = waiting(prepared, done)
        with self._changed:
            limit = self._settings.max_waiting * self._settings.max_rows
            if limit and len(self._queue) >= limit:
                raise RequestError(
                    f"{len(self._queue)} requests wait to be computed"
                    " (SAGEMAKER_TFS_MAX_ENQUEUED_BATCHES)",
                    503,
                )
            self._queue.append(item)
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                batch = take(self._queue, self._settings.max_rows)
            compute(batch)
            self._computed()

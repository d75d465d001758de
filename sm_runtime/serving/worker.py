"""A worker process: it loads what is served, then answers the requests that the front hands on.

The main thread reads requests; threads answer them. Requests for the model itself (TensorFlow's
REST interface, and ``/invocations`` where there is no own code) never wait for the user's handlers,
which may ask for them.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sm_runtime.job.errors import JobError
from sm_runtime.serving import frames, settings
from sm_runtime.serving.batching import Batcher
from sm_runtime.serving.predictor import Predictor, error_answer
from sm_runtime.serving.settings import Settings
from sm_runtime.serving.values import Answer, Request, RequestError

log = logging.getLogger(__name__)

Handler = Callable[[Request], Answer]


class Worker:
    """Answers requests with a predictor, or with the user's handler."""

    def __init__(
        self,
        connection: socket.socket,
        predictor: Predictor | None,
        handler: Handler | None,
        chosen: Settings,
        cpus: int,
    ) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._predictor, self._handler = predictor, handler
        self._reading: set[int] = set()
        """The requests that are not decoded yet."""
        self._lane = ThreadPoolExecutor(min(4, max(2, cpus)), "predict")
        self._own_lane = ThreadPoolExecutor(chosen.threads, "handler") if handler else None
        self._batcher = Batcher(chosen.batching, lambda: len(self._reading)) if chosen.batching else None

    def take(self, header: dict[str, Any], body: bytes) -> None:
        """Have a request answered."""
        number = header.pop("id")
        request = Request(**header, body=body)
        if self._handler is not None and request.path == "/invocations":
            assert self._own_lane is not None
            self._own_lane.submit(self._own, number, request)
            return
        self._reading.add(number)
        self._lane.submit(self._predict, number, request)

    def ask(self, request: Request) -> Answer:
        """Return the model's own answer, for the user's code: no HTTP in between."""
        assert self._predictor is not None
        done = threading.Event()
        found: list[Answer] = []

        def finished(answer: Answer, rows: int) -> None:
            found.append(answer)
            done.set()

        self._compute(request, finished)
        done.wait()
        return found[0]

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Write a frame to the front."""
        with self._lock:
            frames.send(self._connection, header, body)

    def _own(self, number: int, request: Request) -> None:
        assert self._handler is not None
        try:
            answer = self._handler(request)
        except Exception as error:
            answer = error_answer(error)
        self._answer(number, answer, 0)

    def _predict(self, number: int, request: Request) -> None:
        self._compute(
            request, lambda answer, rows: self._answer(number, answer, rows), number
        )

    def _compute(
        self, request: Request, finished: Callable[[Answer, int], None], number: int = 0
    ) -> None:
        try:
            try:
                if self._predictor is None:
                    raise RequestError(f"no TensorFlow model answers {request.path} here", 404)
                prepared = self._predictor.prepare(request)
            finally:
                self._reading.discard(number)
            if isinstance(prepared, Answer):
                finished(prepared, 0)
                return
            finish = prepared.finish

            def done(result: Mapping[str, Any] | Exception, rows: int) -> None:
                try:
                    if isinstance(result, Exception):
                        raise result
                    answer = finish(result)
                except Exception as error:
                    answer = error_answer(error)
                finished(answer, rows)

            if self._batcher is not None:
                self._batcher.submit(prepared, done)
            else:
                done(prepared.model.run(prepared.signature, prepared.inputs), 0)
        except Exception as error:
            finished(error_answer(error), 0)

    def _answer(self, number: int, answer: Answer, rows: int) -> None:
        header = {"id": number, "status": answer.status, "headers": dict(answer.headers)}
        if rows:
            header["rows"] = rows
        try:
            self.send(header, answer.body)
        except OSError:  # the front is gone, and so will be this process
            log.debug("an answer could not be sent")

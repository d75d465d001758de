"""The threads of a worker in which requests are answered.

Requests for the model itself (TensorFlow's
REST interface, and ``/invocations`` where there is no own code) never wait for the user's handlers,
which may ask for them.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any

from sm_runtime.serving import frames
from sm_runtime.serving.batching import Batcher
from sm_runtime.serving.predictor import Predictor
from sm_runtime.serving.settings import Settings
from sm_runtime.serving.values import Answer, Request, RequestError, error_answer

log = logging.getLogger(__name__)

Handler = Callable[[Request], Answer]
Finished = Callable[[Answer, int], None]
"""Called once with the answer, and the rows of the batch that it was part of."""


class Lanes:
    """Answers requests with a predictor, or with the user's handler."""

    def __init__(self, connection: socket.socket, settings: Settings, cpus: int) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._unsent: list[bytes] = []
        self.predictor: Predictor | None = None
        self._handler: Handler | None = None
        self._own_lane = ThreadPoolExecutor(settings.threads, "handler")
        self._lane = ThreadPoolExecutor(min(4, max(2, cpus)), "predict")
        self._batcher = Batcher(settings.batching, self._flush) if settings.batching else None

    def handle_with(self, handler: Handler) -> None:
        """Have ``/invocations`` answered by the user's code."""
        self._handler = handler

    def take(self, header: dict[str, Any], body: bytes) -> None:
        """Have a request answered."""
        number = header.pop("id")
        request = Request(**header, body=body)
        if self._handler is not None and request.path == "/invocations":
            self._own_lane.submit(self._own, number, request)
        elif self._batcher is not None:  # decoded here: more threads would only change places
            self._compute(request, partial(self._keep, number))
        else:
            self._lane.submit(self._compute, request, partial(self._answer, number))

    def ask(self, request: Request) -> Answer:
        """Return the model's own answer, for the user's code: no HTTP in between."""
        found: SimpleQueue[Answer] = SimpleQueue()
        self._compute(request, lambda answer, rows: found.put(answer))
        return found.get()

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Write a frame to the front."""
        with self._lock:
            frames.send(self._connection, header, body)

    def _own(self, number: int, request: Request) -> None:
        assert self._handler is not None
        try:
            answer = self._handler(request)
        except BaseException as error:  # of the user's code, in a thread: it ends nothing else
            answer = _failure(error)
        self._answer(number, answer, 0)

    def _compute(self, request: Request, finished: Finished) -> None:
        try:
            if self.predictor is None:
                raise RequestError(f"no TensorFlow model answers {request.path} here", 404)
            prepared = self.predictor.prepare(request)
            if isinstance(prepared, Answer):
                finished(prepared, 0)
            elif self._batcher is not None:
                self._batcher.submit(prepared, partial(_finish, prepared.finish, finished))
            else:
                outputs = prepared.model.run(prepared.signature, prepared.inputs)
                finished(prepared.finish(outputs), 0)
        except Exception as error:
            finished(_failure(error), 0)

    def _keep(self, number: int, answer: Answer, rows: int) -> None:
        """Send an answer with those of its batch; at once where there is none."""
        if rows:
            header = {"id": number, "status": answer.status, "headers": dict(answer.headers)}
            frame = frames.prefix({**header, "rows": rows}, answer.body) + answer.body
            with self._lock:
                self._unsent.append(frame)
        else:
            self._answer(number, answer, 0)

    def _flush(self) -> None:
        with self._lock:
            unsent, self._unsent = self._unsent, []
            with contextlib.suppress(OSError):  # the front is gone, and so will be this process
                self._connection.sendall(b"".join(unsent))

    def _answer(self, number: int, answer: Answer, rows: int) -> None:
        header = {"id": number, "status": answer.status, "headers": dict(answer.headers)}
        try:
            self.send({**header, "rows": rows}, answer.body)
        except OSError:  # the front is gone, and so will be this process
            log.debug("an answer could not be sent")


def _finish(
    finish: Callable[[Mapping[str, Any]], Answer],
    finished: Finished,
    result: Mapping[str, Any] | Exception,
    rows: int,
) -> None:
    try:
        if isinstance(result, Exception):
            raise result
        answer = finish(result)
    except Exception as error:
        answer = _failure(error)
    finally:
        del result  # an error, whose traceback has this frame, would hold itself
    finished(answer, rows)


def _failure(error: BaseException) -> Answer:
    """Return the answer for whatever went wrong; what is no client's fault is logged, too."""
    if isinstance(error, RequestError):
        return error_answer(error.status, str(error))
    log.error("a request failed", exc_info=error)
    return error_answer(500, f"{type(error).__name__}: {error}")

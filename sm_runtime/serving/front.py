"""The HTTP interface of a server: what it answers itself, and what it hands to the workers."""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

from sm_runtime.serving.asgi import Bodies, has_body, send_answer
from sm_runtime.serving.metrics import CONTENT_TYPE, Metrics
from sm_runtime.serving.settings import Settings
from sm_runtime.serving.values import (
    Answer,
    Request,
    RequestError,
    error_answer,
    json_answer,
)

log = logging.getLogger(__name__)


class Backend(Protocol):
    """What answers requests: the workers of one model, or of many."""

    @property
    def is_ready(self) -> bool:
        """Whether requests can be answered."""

    async def answer(self, request: Request) -> tuple[Answer, int]:
        """Return the answer, and the rows of the batch that it was part of.

        Raises RequestError.
        """


class Front:
    """An ASGI application."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self.metrics = metrics
        self.backend: Backend | None = None
        """None until the model is loaded; from then on requests wait for a worker."""
        self.draining = False
        self._bodies = Bodies(settings.max_body)
        self._own = {
            "/ping": self._ping,
            "/metrics": self._metrics,
            "/execution-parameters": self._parameters,
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        path, method = scope["path"], scope["method"]
        if self._is_for_backend(path):
            await self._pass_on(scope, receive, send)
        elif path not in self._own:
            await self._refuse(scope, send, self._unknown(path))
        elif method not in ("GET", "HEAD"):
            text = f"{method} is not allowed for {path}, but GET"
            await self._refuse(scope, send, error_answer(405, text))
        else:
            await send_answer(scope, send, self._own[path]())

    async def _refuse(self, scope: Any, send: Any, answer: Answer) -> None:
        """Answer what nobody reads the body of."""
        self.metrics.count("other", answer.status, 0, 0, 0)
        _log_access(scope, answer, 0)
        await send_answer(scope, send, answer, close=has_body(scope))

    def _is_for_backend(self, path: str) -> bool:
        if path == "/invocations" or path.startswith("/v1/"):
            return True
        return self._settings.multi_model and (path == "/models" or path.startswith("/models/"))

    def _ping(self) -> Answer:
        ready = self.backend is not None and self.backend.is_ready and not self.draining
        return Answer(status=200 if ready else 503)

    def _metrics(self) -> Answer:
        return Answer(headers={"content-type": CONTENT_TYPE}, body=self.metrics.text())

    def _parameters(self) -> Answer:
        """Say what batch transform may send; SDK 2's local mode refuses BatchStrategy here."""
        limit = self._settings.max_body
        found = {
            "MaxConcurrentTransforms": self._settings.max_concurrent_transforms,
            "MaxPayloadInMB": 0 if limit is None else limit // 2**20,
        }
        return json_answer(200, found)

    def _unknown(self, path: str) -> Answer:
        more = ", /models" if self._settings.multi_model else ""
        known = f"/ping, /invocations, /execution-parameters, /metrics, /v1/models/<name>{more}"
        return error_answer(404, f"there is no {path} here, but {known}")

    async def _pass_on(self, scope: Any, receive: Any, send: Any) -> None:
        started, size, rows = time.perf_counter(), 0, 0
        try:
            body = await self._bodies.read(scope, receive)
            size, started = len(body), time.perf_counter()
            if self.backend is None:
                raise RequestError("the model is not ready: GET /ping says when it is", 503)
            with self._bodies.held(size):
                answer, rows = await self.backend.answer(_request(scope, body))
        except RequestError as error:
            answer = error_answer(error.status, str(error))
        except Exception as error:
            log.exception("a request failed")
            answer = error_answer(500, f"{type(error).__name__}: {error}")
        seconds = time.perf_counter() - started
        self.metrics.count(_kind(scope["path"]), answer.status, seconds, size, rows)
        if answer.status >= 400 or self._settings.access_log:
            _log_access(scope, answer, seconds)
        close = self.draining or answer.status in (408, 413, 503)
        await send_answer(scope, send, answer, close=close)


def _request(scope: Any, body: bytes | memoryview) -> Request:
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        text, key = value.decode("latin-1"), name.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return Request(
        method=scope["method"],
        path=scope["path"],
        query=scope["query_string"].decode("latin-1"),
        headers=headers,
        body=body,
    )


def _kind(path: str) -> str:
    """Return a path as it is counted: there are few of them, whatever clients ask for."""
    if path == "/invocations":
        return path
    return "/v1/models" if path.startswith("/v1/") else "/models"


def _log_access(scope: Any, answer: Answer, seconds: float) -> None:
    client = scope.get("client") or ("-", 0)
    text = ""
    if answer.status >= 400:
        text = ": " + answer.body[:300].decode("utf-8", "replace").replace("\n", " ")
    log.log(
        logging.WARNING if answer.status >= 500 else logging.INFO,
        "%s %s from %s: %d in %.1f ms%s",
        scope["method"],
        ascii(scope["path"])[1:-1][:200],
        client[0].removeprefix("::ffff:"),
        answer.status,
        seconds * 1e3,
        text,
    )

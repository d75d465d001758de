"""Bodies of requests and answers as the user's functions have them, where they define no own codec.

Only a worker imports this.
"""

from __future__ import annotations

import io
import json
from typing import Any

from sm_runtime.serving.media import CSV, JSON, NPY, base_type
from sm_runtime.serving.values import Answer, RequestError


def decode(body: bytes | memoryview, content_type: str) -> Any:
    """Return JSON, CSV or npy as numpy has it; JSON with objects or null stays as it is.

    The list in an object ``{"instances": [...]}`` is taken out. Raises RequestError.
    """
    np = numpy()
    kind = base_type(content_type)
    try:
        if kind == JSON:
            found = json.loads(bytes(body))
            if isinstance(found, dict) and len(found) == 1:
                found = found.get("instances", found.get("inputs", found))
            array = np.array(found)
            return found if array.dtype == object else array
        if kind == CSV:
            text = bytes(body).decode()
            if not text.strip():
                raise ValueError("it is empty")
            return np.loadtxt(io.StringIO(text), delimiter=",", ndmin=2, comments=None)
        if kind == NPY:
            from sm_runtime.serving.formats import read_npy

            return read_npy(body).copy()
    except RequestError:
        raise
    except Exception as error:  # numpy's reader of headers raises whatever Python's parser does
        why = " ".join(str(error).split())
        raise RequestError(f"the body cannot be read as {kind}: {why}") from error
    raise RequestError(
        f"the content type {content_type} is not supported without an input_fn: send {JSON},"
        f" {CSV} or {NPY}",
        415,
    )


def encode(value: Any, accept: str) -> bytes:
    """Return a prediction as JSON, CSV or npy. Raises RequestError (406) for other types."""
    kind = base_type(accept)
    check_accept(accept)
    if kind == JSON:
        return json.dumps(value, default=_plain).encode()
    np = numpy()
    buffer = io.BytesIO()
    array = _regular(np.asarray(value))
    if kind == NPY:
        np.save(buffer, array, allow_pickle=False)
    else:
        rows = array.reshape(len(array), -1) if array.ndim > 2 else np.atleast_1d(array)
        np.savetxt(buffer, rows, delimiter=",", fmt="%s")
    return buffer.getvalue()


def check_accept(accept: str) -> None:
    """Raise RequestError (406) for a type that ``encode`` does not write."""
    if base_type(accept) not in (JSON, CSV, NPY):
        raise RequestError(
            f"the answer cannot be {accept} without an output_fn: accept {JSON}, {CSV} or {NPY}",
            406,
        )


def _regular(array: Any) -> Any:
    if array.dtype == object:
        raise ValueError("its rows have different lengths, or hold null or objects")
    return array


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        import base64

        return {"b64": base64.b64encode(value).decode()}
    for name in ("tolist", "item", "_asdict"):
        if convert := getattr(value, name, None):
            return convert()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def arrays(found: Any) -> Any:
    """Return the lists of an answer of the model as arrays."""
    np = numpy()
    value = found.get("predictions", found.get("outputs", found.get("results")))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        if "b64" not in value[0]:
            return {name: np.array([row[name] for row in value]) for name in value[0]}
    elif isinstance(value, dict):
        return {name: np.array(part) for name, part in value.items()}
    return np.array(value)


def numpy() -> Any:
    """Return the module numpy. Raises RequestError (500) where it is not installed."""
    try:
        import numpy
    except ImportError as error:
        raise RequestError(
            "numpy, which reads and writes bodies where there is no input_fn or output_fn, is not"
            " installed",
            500,
        ) from error
    return numpy


def response(answer: Answer, uri: str) -> Any:
    """Return the model's answer as a response of requests, or what looks like one."""
    try:
        import requests
    except ImportError:
        return _Response(answer, uri)
    response = requests.Response()
    response.status_code = answer.status
    response.headers.update(answer.headers)
    response.encoding = "utf-8"
    response.url = uri
    response.reason = _reason(answer.status)
    response._content = answer.body
    return response


def _reason(status: int) -> str:
    from http.client import responses

    return responses.get(status, "")


class _Response:
    """What handlers use of a response, where requests is not installed."""

    def __init__(self, answer: Answer, uri: str) -> None:
        self.status_code, self.content, self.url = answer.status, answer.body, uri
        self.headers = {name.title(): value for name, value in answer.headers.items()}
        self.reason = _reason(answer.status)
        self.encoding = "utf-8"
        self.ok = answer.status < 400

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        return json.loads(self.content)

    def raise_for_status(self) -> None:
        if not self.ok:
            raise OSError(f"{self.status_code} {self.reason} for url: {self.url}")

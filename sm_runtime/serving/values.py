"""The values that travel between the front process, the workers and the models."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

STRING = "string"
"""The dtype of tensors of bytes; in numpy, arrays of objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An HTTP request, its body complete and as the client sent it."""

    method: str = "POST"
    path: str = "/invocations"
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """By lower-case name; of several with one name, the values with commas between them."""
    body: bytes | memoryview = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is sent back for a request."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    """By lower-case name, ``content-type`` among them; no ``content-length``."""
    body: bytes = b""


MODEL_HEADER = "x-sm-runtime-model"
"""Names, on an answer, the model that has given it: ``name/version``, or its name alone."""
ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
_ATTRIBUTE = re.compile(r"(?:^|[,;])\s*(tfs-[a-z-]+)=([^,;]+)")


def attributes(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the ``tfs-*`` keys among custom attributes; what else they hold is the handler's."""
    return {key: value.strip() for key, value in _ATTRIBUTE.findall(headers.get(ATTRIBUTES, ""))}


def json_answer(status: int, value: Any) -> Answer:
    """Return an answer that is a JSON text."""
    body = json.dumps(value).encode()
    return Answer(status=status, headers={"content-type": "application/json"}, body=body)


def error_answer(status: int, text: str) -> Answer:
    """Return the answer to a request that failed: ``{"error": "..."}``."""
    return json_answer(status, {"error": text})


class RequestError(Exception):
    """A request cannot be answered: ``str()`` is one sentence for the client, ``status`` HTTP's."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """What a signature takes or gives under one name."""

    name: str
    dtype: str
    """TensorFlow's name: ``float32``, ``int64``, ``bool``, ``string``, ``bfloat16`` ..."""
    shape: tuple[int | None, ...] | None = None
    """None where the rank is unknown; None for an axis of any length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One way to call a model."""

    name: str
    method: str = "predict"
    """``predict``, ``classify`` or ``regress``."""
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


class Model(Protocol):
    """One version of a model, loaded."""

    name: str
    version: int
    signatures: Mapping[str, Signature]
    default_signature: str

    def run(self, signature: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the outputs, numpy arrays by name, for the inputs, numpy arrays by name.

        Raises RequestError (400) where the model refuses the inputs.
        """


class Registry(Protocol):
    """The models of a worker."""

    default_name: str

    def get(self, name: str | None = None, version: int | None = None) -> Model:
        """Return a version of a model, the highest by default; it is loaded on first use.

        Raises RequestError (404), naming the models and versions that there are.
        """

    def versions(self, name: str | None = None) -> Mapping[int, str]:
        """Return the state of each version: ``AVAILABLE``, ``START`` or ``END`` (not loaded)."""

"""Models that numpy computes, and requests to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sm_runtime.serving.predictor import Predictor
from sm_runtime.serving.values import Answer, Request, RequestError, Signature, TensorSpec

Shape = tuple[int | None, ...] | None
Specs = Mapping[str, tuple[str, Shape]]


def specs(given: Specs) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(name=name, dtype=dtype, shape=shape)
        for name, (dtype, shape) in given.items()
    }


def signature(
    inputs: Specs, outputs: Specs, *, name: str = "serving_default", method: str = "predict"
) -> Signature:
    return Signature(name=name, method=method, inputs=specs(inputs), outputs=specs(outputs))


@dataclass
class NumpyModel:
    signatures: Mapping[str, Signature]
    compute: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    name: str = "model"
    version: int = 1
    default_signature: str = "serving_default"

    def run(self, signature: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        assert signature in self.signatures
        return self.compute(inputs)


@dataclass
class Models:
    models: list[NumpyModel]

    @property
    def default_name(self) -> str:
        return self.models[0].name

    def get(self, name: str | None = None, version: int | None = None) -> NumpyModel:
        name = name or self.default_name
        fitting = [
            one for one in self.models if one.name == name and version in (None, one.version)
        ]
        if not fitting:
            raise RequestError(f"there is no model {name!r} with version {version}", 404)
        return max(fitting, key=lambda one: one.version)

    def versions(self, name: str | None = None) -> Mapping[int, str]:
        self.get(name)
        return {
            one.version: "AVAILABLE"
            for one in self.models
            if one.name == (name or self.default_name)
        }


def predictor(
    inputs: Specs,
    outputs: Specs,
    compute: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    **more: Any,
) -> Predictor:
    """Return a predictor with one model of one signature."""
    one = signature(inputs, outputs)
    return Predictor(Models([NumpyModel({one.name: one}, compute)]), **more)


def half_plus_three(shape: Shape = None) -> Predictor:
    """Return TensorFlow Serving's toy model, with which AWS tests its image."""
    one = signature({"x": ("float32", shape)}, {"y": ("float32", shape)})

    def compute(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"y": inputs["x"] * 0.5 + 3}

    return Predictor(
        Models(
            [
                NumpyModel({one.name: one}, compute, "half_plus_three", version)
                for version in (123, 124)
            ]
        )
    )


def echo(dtype: str, shape: Shape = None, **more: Any) -> Predictor:
    """Return a predictor whose model gives back its one input."""
    return predictor(
        {"x": (dtype, shape)}, {"y": (dtype, shape)}, lambda inputs: {"y": inputs["x"]}, **more
    )


def post(
    served: Predictor,
    body: Any,
    content_type: str | None = "application/json",
    accept: str | None = None,
    path: str = "/invocations",
    attributes: str | None = None,
) -> Answer:
    """Return the answer for a body: bytes as they are, text in UTF-8, other values in JSON."""
    headers = {
        "content-type": content_type,
        "accept": accept,
        "x-amzn-sagemaker-custom-attributes": attributes,
    }
    data = body if isinstance(body, (bytes, memoryview, str)) else json.dumps(body)
    return served.answer(
        Request(
            path=path,
            headers={name: value for name, value in headers.items() if value is not None},
            body=data.encode() if isinstance(data, str) else data,
        )
    )


def said(answer: Answer) -> Any:
    """Return the value of a JSON answer, as the SDK reads it."""
    return json.loads(answer.body)


def error(answer: Answer, status: int = 400) -> str:
    """Return the text of an error."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    found = said(answer)
    assert set(found) == {"error"}
    return str(found["error"])

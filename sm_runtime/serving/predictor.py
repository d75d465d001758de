"""What is done with a request: routes, the model and signature that it means, and its answer.

``/invocations`` is SageMaker's, ``/v1/models/...`` TensorFlow Serving's REST API.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sm_runtime.serving import formats, json_body
from sm_runtime.serving.classification import results_text
from sm_runtime.serving.media import CSV, JSON, NPY, media_types
from sm_runtime.serving.signature import example_text
from sm_runtime.serving.values import (
    MODEL_HEADER,
    Answer,
    Model,
    Registry,
    Request,
    RequestError,
    Signature,
    TensorSpec,
    attributes,
    error_answer,
    json_answer,
)

METHODS = ("predict", "classify", "regress")
_REST = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[^/:]+))?"
    r"(?::(?P<method>\w+)|(?P<metadata>/metadata))?"
)
_DTYPES = {"float32": "FLOAT", "float64": "DOUBLE", "float16": "HALF"}
"""TensorFlow's names that are not numpy's in capitals."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request whose inputs are decoded: ``finish(model.run(signature, inputs))`` answers it."""

    model: Model
    signature: str
    inputs: Mapping[str, Any]
    """Arrays by name, of exactly the signature's types; they may be read-only."""
    finish: Callable[[Mapping[str, Any]], Answer]
    """Writes the outputs as the request asked; raises RequestError."""


@dataclass(frozen=True, slots=True)
class _Target:
    """What a request names."""

    model: Model
    method: str | None = None
    signature_name: str | None = None
    rest: bool = False
    """By TensorFlow Serving's API: JSON, whatever the headers say."""


class Predictor:
    """Answers requests with the models of a registry."""

    def __init__(
        self,
        registry: Registry,
        *,
        default_accept: str = JSON,
        alias: str = "",
        make_example: Callable[[json_body.Features], bytes] = json_body.tensorflow_example,
    ) -> None:
        """``default_accept``: the media type where a request names none.

        ``alias``: what answers call the model, where that is not its own name.
        """
        self._registry = registry
        self._alias = alias
        self._default_accept = _one_type(default_accept)
        self._make_example = make_example

    def answer(self, request: Request) -> Answer:
        """Return the answer for a request, run alone; errors of the request are answers, too."""
        try:
            found = self.prepare(request)
            if isinstance(found, Answer):
                return found
            return found.finish(found.model.run(found.signature, found.inputs))
        except RequestError as error:
            return error_answer(error.status, str(error))

    def prepare(self, request: Request) -> Prepared | Answer:
        """Return a request decoded, or its answer where no model has to run.

        Raises RequestError: 400 for the body, 404 for path, model or version, 406 and 415 for
        media types.
        """
        if request.path == "/invocations":
            if request.method != "POST":
                return _not_allowed(request, "POST")
            return self._prepare(request, self._attributes(request))
        match = _REST.fullmatch(request.path)
        if match is None:
            raise RequestError(
                f"there is no {request.path[:200]!r}: post to /invocations or to "
                "/v1/models/NAME[/versions/N]:predict",
                404,
            )
        name, version = match["name"], _version(match["version"])
        if match["method"] is None:
            if request.method not in ("GET", "HEAD"):
                return _not_allowed(request, "GET")
            if match["metadata"]:
                return json_answer(200, _metadata(self._registry.get(name, version)))
            return json_answer(200, _status(self._registry, name, version))
        if request.method != "POST":
            return _not_allowed(request, "POST")
        method = _method(match["method"], 404)
        return self._prepare(request, _Target(self._registry.get(name, version), method, rest=True))

    def _attributes(self, request: Request) -> _Target:
        """Return what X-Amzn-SageMaker-Custom-Attributes names; other text in it is the user's."""
        found = attributes(request.headers)
        method = found.get("tfs-method")
        return _Target(
            self._registry.get(
                found.get("tfs-model-name"), _version(found.get("tfs-model-version"))
            ),
            None if method is None else _method(method, 400),
            found.get("tfs-signature-name"),
        )

    def _prepare(self, request: Request, target: _Target) -> Prepared:
        media = self._media(request, target)
        if media not in (JSON, formats.JSON_LINES, formats.JSONS):
            signature = _signature(target, None, examples=False)
            accept = self._accept(request, target, signature)
            inputs = _decoded(media, signature, request.body)
            finish = _finish(self._headers(target, accept), signature.name, rows=True)
            return Prepared(target.model, signature.name, inputs, finish)
        lines = media != JSON
        ask = json_body.asked(request.body, lines=lines, strict=target.rest)
        signature = _signature(target, ask.signature_name, examples=ask.form == "examples")
        by_examples = signature.method != "predict" and (
            target.method == signature.method or ask.form == "examples"
        )
        accept = self._accept(request, target, signature, results=by_examples)
        if by_examples:
            tensors = json_body.examples(signature, ask, self._make_example)
            finish = _results(self._headers(target, accept), signature)
            return Prepared(target.model, signature.name, tensors, finish)
        tensors, form = json_body.inputs(signature, ask)
        finish = _finish(self._headers(target, accept), signature.name, rows=form == "rows")
        return Prepared(target.model, signature.name, tensors, finish)

    def _headers(self, target: _Target, accept: str) -> dict[str, str]:
        name = self._alias or target.model.name
        return {"content-type": accept, MODEL_HEADER: f"{name}/{target.model.version}"}

    def _media(self, request: Request, target: _Target) -> str:
        if target.rest:
            return JSON
        return formats.content_type(
            request.headers.get("content-type"),
            lambda: formats.takes_bytes(_signature(target, None, examples=False)),
        ).name

    def _accept(
        self, request: Request, target: _Target, signature: Signature, *, results: bool = False
    ) -> str:
        if target.rest:
            return JSON
        possible = formats.given_types(signature, results=results)
        return formats.accepted(request.headers.get("accept"), self._default_accept, possible)


def _one_type(header: str) -> str:
    found = media_types(header)
    return found[0].name if found else JSON


def _not_allowed(request: Request, allowed: str) -> Answer:
    text = f"{request.method} is not allowed for {request.path[:200]}: send {allowed}"
    answer = error_answer(405, text)
    return Answer(status=405, headers={**answer.headers, "allow": allowed}, body=answer.body)


def _version(text: str | None) -> int | None:
    """Return a version, which may have leading zeros."""
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise RequestError(f"model version {text[:60]!r} is no number")
    return int(text)


def _method(text: str, status: int) -> str:
    if text not in METHODS:
        raise RequestError(f"method {text[:60]!r} is none of {', '.join(METHODS)}", status)
    return text


def _signature(target: _Target, asked: str | None, *, examples: bool) -> Signature:
    """Return the signature that is meant: by the body, the attributes, the method, or by default.

    Raises RequestError (400) that lists the signatures there are.
    """
    model, wanted = target.model, target.method
    if examples and wanted is None:
        wanted = _examples_method(model)
    name = asked or target.signature_name
    if not name:
        name = model.default_signature
        fitting = [one.name for one in model.signatures.values() if one.method == wanted]
        if wanted in ("classify", "regress") and name not in fitting and len(fitting) == 1:
            name = fitting[0]
    found = model.signatures.get(name)
    if found is None:
        raise RequestError(
            f"model {model.name!r} has no signature {name[:60]!r}, only {_listed(model)}"
        )
    if wanted in ("classify", "regress") and found.method != wanted:
        raise RequestError(
            f"signature {name!r} is for {found.method}, not {wanted}: model {model.name!r} has "
            f"{_listed(model)}; a valid body is {example_text(found)}"
        )
    return found


def _examples_method(model: Model) -> str | None:
    """Return which of classify and regress ``examples`` are for, where the model tells."""
    methods = {one.method for one in model.signatures.values()} - {"predict"}
    return methods.pop() if len(methods) == 1 else None


def _listed(model: Model) -> str:
    return ", ".join(f"{one.name!r} ({one.method})" for one in model.signatures.values())


def _decoded(media: str, signature: Signature, body: bytes | memoryview) -> dict[str, Any]:
    if media == CSV:
        return formats.csv_inputs(signature, body)
    if media == NPY:
        return formats.npy_inputs(signature, body)
    return formats.raw_inputs(signature, body)


def _finish(
    headers: Mapping[str, str], signature: str, *, rows: bool
) -> Callable[[Mapping[str, Any]], Answer]:
    def finish(outputs: Mapping[str, Any]) -> Answer:
        body = formats.written(headers["content-type"], signature, outputs, rows=rows)
        return Answer(headers=headers, body=body)

    return finish


def _results(
    headers: Mapping[str, str], signature: Signature
) -> Callable[[Mapping[str, Any]], Answer]:
    def finish(outputs: Mapping[str, Any]) -> Answer:
        body = results_text(signature, outputs)
        end = b"" if headers["content-type"] == JSON else b"\n"
        return Answer(headers=headers, body=body + end)

    return finish


# ------------------------------------------------------------ TensorFlow Serving's GETs


def _status(registry: Registry, name: str, version: int | None) -> dict[str, Any]:
    states = registry.versions(name)
    if version is not None and version not in states:
        raise RequestError(f"model {name!r} has no version {version}, only {sorted(states)}", 404)
    ok = {"error_code": "OK", "error_message": ""}
    return {
        "model_version_status": [
            {"version": str(number), "state": state, "status": ok}
            for number, state in sorted(states.items(), reverse=True)
            if version in (None, number)
        ]
    }


def _metadata(model: Model) -> dict[str, Any]:
    signatures = {
        name: {
            "inputs": {key: _tensor_info(spec) for key, spec in one.inputs.items()},
            "outputs": {key: _tensor_info(spec) for key, spec in one.outputs.items()},
            "method_name": f"tensorflow/serving/{one.method}",
        }
        for name, one in model.signatures.items()
    }
    return {
        "model_spec": {"name": model.name, "signature_name": "", "version": str(model.version)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    axes = [{"size": str(-1 if a is None else a), "name": ""} for a in spec.shape or ()]
    return {
        "dtype": "DT_" + _DTYPES.get(spec.dtype, spec.dtype.upper()),
        "tensor_shape": {"dim": axes, "unknown_rank": spec.shape is None},
        "name": spec.name,
    }

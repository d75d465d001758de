"""The answers of classify and regress, as TensorFlow Serving writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from sm_runtime.serving.tensors import Tensor, plain, text
from sm_runtime.serving.values import STRING, RequestError, Signature


def results_text(signature: Signature, outputs: Mapping[str, Any]) -> bytes:
    """Return ``{"results": ...}``: pairs of label and score for each example, or its value.

    Raises RequestError (400) where the outputs are none of such a signature.
    """
    if signature.method == "regress":
        return b'{"results":' + text(_regressions(signature, outputs)) + b"}"
    labels, scores = _classes(signature, outputs)
    rows = zip(labels, scores, strict=True)
    found = [[_pair(*one) for one in zip(*row, strict=True)] for row in rows]
    return orjson.dumps({"results": found})


def _pair(label: Any, score: np.floating[Any]) -> list[Any]:
    return [label, orjson.Fragment(text(score))]


def _regressions(signature: Signature, outputs: Mapping[str, Any]) -> Tensor:
    value = np.asarray(outputs.get("outputs", next(iter(outputs.values()), 0)))
    if value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    if value.ndim != 1 or value.dtype.kind not in "fV":
        raise _unfit(signature, "one float output of shape [None] or [None, 1]")
    found: Tensor = plain("outputs", value)
    return found


def _classes(signature: Signature, outputs: Mapping[str, Any]) -> tuple[list[Any], Tensor]:
    """Return labels and scores; what the model does not give is "" or 0."""
    texts = [name for name, spec in signature.outputs.items() if spec.dtype == STRING]
    others = [name for name in signature.outputs if name not in texts]
    given = {name: np.asarray(value) for name, value in outputs.items()}
    labels = next((given[name] for name in texts if name in given), None)
    scores = next((given[name] for name in others if name in given), None)
    shape = next((one.shape for one in (scores, labels) if one is not None), ())
    if len(shape) != 2 or any(one is not None and one.shape != shape for one in (labels, scores)):
        raise _unfit(signature, "classes and scores of one shape, [None, classes]")
    if labels is None:
        labels = np.full(shape, b"", object)
    if scores is None:
        scores = np.zeros(shape, np.float32)
    return plain("classes", labels), plain("scores", scores)


def _unfit(signature: Signature, wanted: str) -> RequestError:
    return RequestError(
        f"signature {signature.name!r} is no {signature.method} signature: its outputs are not "
        f"{wanted}; ask it with predict"
    )

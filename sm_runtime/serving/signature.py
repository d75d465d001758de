"""What a signature takes, in words and as a valid body. Needs no numpy: ``check`` prints it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sm_runtime.serving.values import STRING, RequestError, Signature, TensorSpec

DEFAULT_SIGNATURE = "serving_default"
_SHORT = 50
"""Values up to which an error shows a valid body in full."""


def describe(spec: TensorSpec) -> str:
    """Return type and shape, as in ``float32 [None, 28, 28, 1]``."""
    return f"{spec.dtype} {'of any rank' if spec.shape is None else list(spec.shape)}"


def describe_inputs(signature: Signature) -> str:
    """Return the inputs with type and shape, as in ``'a' (int32 [None]), 'b' (string [None])``."""
    return ", ".join(f"{spec.name!r} ({describe(spec)})" for spec in signature.inputs.values())


def refused(
    signature: Signature, spec: TensorSpec, given: str, *, fix: bool = True
) -> RequestError:
    """Return the error for a value of an input: what is expected, what was given, what is valid.

    ``given`` completes "but ..."; ``fix`` adds a valid body.
    """
    valid = f"; a valid body is {example_text(signature)}" if fix else ""
    return RequestError(
        f"signature {signature.name!r}: input {spec.name!r} takes {describe(spec)}, "
        f"but {given}{valid}"
    )


def misshapen(signature: Signature, given: str) -> RequestError:
    """Return the error for a body of a wrong form; ``given`` completes "but ..."."""
    return RequestError(
        f"signature {signature.name!r} takes {describe_inputs(signature)}, but {given}; "
        f"a valid body is {example_text(signature)}"
    )


def check_names(signature: Signature, given: Iterable[str], where: str) -> None:
    """Raise RequestError (400) unless the names are those of the inputs."""
    names = set(given)
    if names == signature.inputs.keys():
        return
    missing = [name for name in signature.inputs if name not in names]
    unknown = sorted(names.difference(signature.inputs))
    found = [f"{where} lacks {_listed(missing)}"] if missing else []
    found += [f"{where} has {_listed(unknown)}, which is no input"] if unknown else []
    raise misshapen(signature, " and ".join(found))


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name if len(name) <= 60 else f"{name[:60]}...") for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def check_shape(signature: Signature, spec: TensorSpec, shape: tuple[int, ...]) -> None:
    """Raise RequestError (400) unless the input takes the shape."""
    expected = spec.shape
    if expected is None or (
        len(shape) == len(expected)
        and all(axis in (None, size) for axis, size in zip(expected, shape, strict=True))
    ):
        return
    raise refused(signature, spec, f"shape {list(shape)} was given")


def example_body(signature: Signature) -> dict[str, Any]:
    """Return a JSON body that the signature takes: one instance of zeros, or of short text.

    Row form (``instances``) where each input has a batch axis, else column form (``inputs``);
    ``examples`` for classify and regress, whose features the signature does not name.
    """
    return _body(signature, _zeros)


def example_text(signature: Signature) -> str:
    """Return ``example_body`` as text for an error; types and shapes stand for many values."""
    sizes = [math.prod(_known(spec.shape)) for spec in signature.inputs.values()]
    if sum(sizes) <= _SHORT:
        return json.dumps(example_body(signature))
    text = json.dumps(_body(signature, lambda spec, shape: f"<{spec.dtype} {list(shape)}>"))
    return re.sub(r'"(<[^"]*>)"', r"\1", text)


def _body(
    signature: Signature, value: Callable[[TensorSpec, tuple[int, ...]], Any]
) -> dict[str, Any]:
    named = {} if signature.name == DEFAULT_SIGNATURE else {"signature_name": signature.name}
    if signature.method != "predict":
        return {**named, "examples": [{"feature": 1.0}]}
    shapes = {name: _known(spec.shape) for name, spec in signature.inputs.items()}
    rows = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(rows) == 1 and 0 not in rows:
        one = _one({name: value(signature.inputs[name], shapes[name][1:]) for name in shapes})
        return {**named, "instances": [one] * rows.pop()}
    return {**named, "inputs": _one({n: value(signature.inputs[n], shapes[n]) for n in shapes})}


def _one(values: Mapping[str, Any]) -> Any:
    return dict(values) if len(values) != 1 else next(iter(values.values()))


def _known(shape: tuple[int | None, ...] | None) -> tuple[int, ...]:
    return (1,) if shape is None else tuple(1 if axis is None else axis for axis in shape)


def _zeros(spec: TensorSpec, shape: tuple[int, ...]) -> Any:
    value: Any = 0.0
    if spec.dtype == STRING:
        value = {"b64": "dGV4dA=="} if spec.name.endswith("_bytes") else "text"
    elif spec.dtype == "bool":
        value = False
    elif "int" in spec.dtype:
        value = 0
    for size in reversed(shape):
        value = [value] * size
    return value

"""JSON bodies: how they are parsed, which form they have, which tensors they become.

The forms are TensorFlow Serving's (``instances``, ``inputs``, ``examples``), and what AWS's image
takes without such a key: an object or a flat list is one instance, a list of lists is several.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson

from sm_runtime.serving.signature import (
    check_names,
    describe_inputs,
    misshapen,
    refused,
)
from sm_runtime.serving.tensors import Tensor, as_bytes, tensor
from sm_runtime.serving.values import STRING, RequestError, Signature

Form = Literal["rows", "columns", "examples", "bare"]
Features = Mapping[str, list[int] | list[float] | list[bytes]]
"""The features of a tf.Example, by name."""

_BOM = b"\xef\xbb\xbf"
_TOKENS = re.compile(rb"NaN|Infinity")
_SEVERAL = re.compile(rb"[}\]]\s*[\[{]")
"""Two documents side by side, as AWS's image tells them."""
_FLOAT32_MAX = 3.4028235677973362e38
"""What is above rounds to infinity."""
_DIGITS = 25
"""Longer integers than this fit no type; as Python's int they take quadratic time."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A JSON body whose form is known and whose values are not yet looked at."""

    form: Form
    value: Any
    signature_name: str | None = None
    context: Any = None
    """Features that are common to all ``examples``."""


def parse(body: bytes | memoryview) -> Any:
    """Return the value of a JSON text, in which NaN and Infinity are numbers.

    Raises RequestError (400).
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        data = bytes(body).removeprefix(_BOM)
        if _TOKENS.search(data):
            return _parse_tokens(data)
        if len(data) < len(body):
            return parse(data)
        what = str(error) if data.strip() else "it is empty"
        raise RequestError(f"the body is not JSON: {what}") from None


def _parse_tokens(data: bytes) -> Any:
    try:
        return json.loads(data.decode(), parse_int=_integer, parse_float=_decimal)
    except RecursionError:
        raise RequestError("the body is not JSON: it is too deep") from None
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < _DIGITS else _decimal(digits)


def _decimal(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:40]} is out of float64's range")
    return value


def parse_several(body: bytes | memoryview) -> list[Any]:
    """Return the values of JSON texts: one a line, or one after another.

    Raises RequestError (400).
    """
    data = bytes(body).removeprefix(_BOM)
    lines = [line for line in data.split(b"\n") if line.strip()]
    if not lines:
        raise RequestError("the body has no JSON: it is empty")
    try:
        return [parse(line) for line in lines]
    except RequestError as error:
        found = _parse_joined(data)
        if found is None:
            raise RequestError(f"the body is not JSON lines: {error}") from None
        return found


def _parse_joined(data: bytes) -> list[Any] | None:
    decoder = json.JSONDecoder(parse_int=_integer, parse_float=_decimal)
    found: list[Any] = []
    try:
        text = data.decode().strip()
        at = 0
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            found.append(value)
            while at < len(text) and text[at].isspace():
                at += 1
    except (ValueError, RecursionError):
        return None
    return found


def asked(body: bytes | memoryview, *, lines: bool, strict: bool = False) -> Asked:
    """Return what a JSON body asks for.

    ``lines``: there may be several texts. ``strict``: only TensorFlow Serving's own forms.
    Raises RequestError (400).
    """
    if not lines:
        try:
            value = parse(body)
        except RequestError:
            if strict or not _SEVERAL.search(body):
                raise
        else:
            return _asked_one(value, strict=strict)
    values = parse_several(body)
    if len(values) == 1 and isinstance(values[0], dict):
        found = _asked_one(values[0], strict=False)
        if found.form != "bare":
            return found
    return Asked("rows", values)


def _asked_one(value: Any, *, strict: bool) -> Asked:
    if not isinstance(value, dict):
        if strict:
            raise RequestError('the body is no JSON object with "instances" or "inputs"')
        return Asked("bare", value)
    name = value.get("signature_name")
    forms: tuple[tuple[str, Form], ...]
    forms = (("instances", "rows"), ("inputs", "columns"), ("examples", "examples"))
    found = [(key, form) for key, form in forms if key in value]
    if not found:
        if strict:
            keys = ", ".join(repr(key[:60]) for key in list(value)[:5]) or "none"
            raise RequestError(f'the body lacks "instances" or "inputs": its keys are {keys}')
        return Asked("bare", value)
    if len(found) > 1:
        raise RequestError(f'the body has both "{found[0][0]}" and "{found[1][0]}": send one')
    if name is not None and not isinstance(name, str):
        raise RequestError('"signature_name" is no string')
    key, form = found[0]
    return Asked(form, value[key], name, value.get("context"))


def inputs(signature: Signature, ask: Asked) -> tuple[dict[str, Tensor], Form]:
    """Return the tensors of a body, and the form its answer has: ``rows`` or ``columns``.

    Raises RequestError (400) that names signature, input, what is expected and what was given.
    """
    if ask.form == "columns":
        return _columns(signature, ask.value), "columns"
    if ask.form == "examples":
        given = 'the body has "examples", which are for classify and regress'
        raise misshapen(signature, given)
    value = ask.value if ask.form == "rows" else _instances(signature, ask.value)
    return _rows(signature, value), "rows"


def _instances(signature: Signature, value: Any) -> list[Any]:
    """Return the instances of a body without a key."""
    if not isinstance(value, list) or not value:
        return [value]
    if isinstance(value[0], dict) and (len(signature.inputs) > 1 or "b64" not in value[0]):
        return value
    spec = next(iter(signature.inputs.values()), None)
    if spec is not None and spec.shape is not None and len(signature.inputs) == 1:
        rank = _rank(value)
        if rank == len(spec.shape):
            return value
        if rank == len(spec.shape) - 1:
            return [value]
    return value if isinstance(value[0], list) else [value]


def _rank(value: Any) -> int:
    rank = 0
    while isinstance(value, list):
        rank += 1
        value = value[0] if value else None
    return rank


def _rows(signature: Signature, value: Any) -> dict[str, Tensor]:
    if not isinstance(value, list):
        raise misshapen(signature, '"instances" is no list')
    if not value:
        raise misshapen(signature, '"instances" is empty')
    specs = signature.inputs
    scalar = next((spec for spec in specs.values() if spec.shape == ()), None)
    if scalar is not None:
        given = 'instances were given, and it has no batch axis: send "inputs"'
        raise refused(signature, scalar, given)
    if any(type(row) is dict and not _is_b64(row) for row in value) or (
        len(specs) > 1 and all(type(row) is dict for row in value)
    ):
        for at, row in enumerate(value):
            if type(row) is not dict:
                raise misshapen(signature, f"instance {at} is no object, as others are")
            if row.keys() != specs.keys():
                check_names(signature, row, f"instance {at}")
        return {
            name: tensor(signature, spec, [row[name] for row in value])
            for name, spec in specs.items()
        }
    if len(specs) != 1:
        raise misshapen(signature, "the instances are no objects of named inputs")
    return {name: tensor(signature, spec, value) for name, spec in specs.items()}


def _columns(signature: Signature, value: Any) -> dict[str, Tensor]:
    if type(value) is not dict or (len(signature.inputs) == 1 and _is_b64(value)):
        if len(signature.inputs) != 1:
            raise misshapen(signature, '"inputs" is no object of named inputs')
        return {name: tensor(signature, spec, value) for name, spec in signature.inputs.items()}
    check_names(signature, value, '"inputs"')
    return {name: tensor(signature, spec, value[name]) for name, spec in signature.inputs.items()}


def _is_b64(value: dict[str, Any]) -> bool:
    return len(value) == 1 and type(value.get("b64")) is str


# ------------------------------------------------------------- classify and regress


def tensorflow_example(features: Features) -> bytes:
    """Return a serialised tf.Example; imports TensorFlow."""
    from tensorflow.core.example.example_pb2 import Example  # type: ignore[import-not-found, import-untyped, unused-ignore] # fmt: skip

    example = Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        if not values:
            continue
        kinds = {int: feature.int64_list, float: feature.float_list, bytes: feature.bytes_list}
        kinds[type(values[0])].value.extend(values)
    data: bytes = example.SerializeToString()
    return data


def examples(
    signature: Signature, ask: Asked, make_example: Callable[[Features], bytes]
) -> dict[str, Tensor]:
    """Return the one string input of a classify or regress signature: an Example for each item.

    Raises RequestError (400).
    """
    specs = list(signature.inputs.values())
    if len(specs) != 1 or specs[0].dtype != STRING:
        raise RequestError(
            f"signature {signature.name!r} takes {describe_inputs(signature)}, and not the one "
            "string input of classify and regress"
        )
    if ask.form != "examples" or not isinstance(ask.value, list) or not ask.value:
        raise misshapen(signature, 'the body has no list "examples" with an example at least')
    context = _features(ask.context, "the context") if ask.context is not None else {}
    found: Tensor = np.empty(len(ask.value), object)
    for at, value in enumerate(ask.value):
        features = _features(value, f"example {at}")
        if twice := sorted(context.keys() & features.keys()):
            raise RequestError(f"feature {twice[0]!r} is in example {at} and in the context, too")
        found[at] = make_example({**context, **features})
    return {specs[0].name: found}


def _features(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{where} is no object of features")
    return {name: _feature(name, given, where) for name, given in value.items()}


def _fits(number: float) -> bool:
    return not math.isfinite(number) or abs(number) <= _FLOAT32_MAX


def _feature(name: str, value: Any, where: str) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    kinds = set(map(type, values))
    try:
        if kinds <= {str, dict}:
            return [as_bytes(one) for one in values]
        if kinds <= {int, bool} and all(-(2**63) <= one < 2**63 for one in values):
            return [int(one) for one in values]
        if float in kinds and kinds <= {int, float} and all(map(_fits, values)):
            return [float(one) for one in values]
    except ValueError as error:
        raise RequestError(f"feature {name[:60]!r} of {where}: {error}") from None
    raise RequestError(
        f"feature {name[:60]!r} of {where} is no list of numbers (int64 or float32) or of strings"
    )

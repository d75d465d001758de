"""JSON values become tensors by a signature's types and shapes, and tensors become JSON text.

Nothing is rounded but decimal fractions to the nearest float, nothing is cut off, nothing guessed.
"""

from __future__ import annotations

import base64
import binascii
from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from sm_runtime.serving.signature import check_shape, describe, refused
from sm_runtime.serving.values import STRING, RequestError, Signature, TensorSpec

Tensor = NDArray[Any]

_INTEGERS = {
    **{"int8": "b", "uint8": "B", "int16": "h", "uint16": "H"},
    **{"int32": "i", "uint32": "I", "int64": "q", "uint64": "Q"},
}
"""The typecodes of `array`, which refuses what is out of range."""
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_KINDS: dict[str, set[type]] = {
    **{name: {int, float} for name in (*_FLOATS, *_INTEGERS)},
    STRING: {str, dict, bytes},
    "bool": {bool},
}
"""Python's types of the values that text may give for a type; others are sent as npy alone."""
_RANK = 32
"""numpy 1's most axes."""
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def numpy_type(dtype: str) -> np.dtype[Any]:
    """Return numpy's type for TensorFlow's name of it; objects for strings.

    Raises TypeError for a type that neither numpy nor ml_dtypes has (``resource``, ``variant``).
    """
    if dtype == STRING:
        return np.dtype(object)
    try:
        return np.dtype(dtype)
    except TypeError:
        import ml_dtypes  # type: ignore[import-untyped, unused-ignore]

        if not hasattr(ml_dtypes, dtype):
            raise
        return np.dtype(getattr(ml_dtypes, dtype))


def tensor(signature: Signature, spec: TensorSpec, value: Any) -> Tensor:
    """Return the tensor of a value that was parsed from JSON, of exactly the input's type.

    Raises RequestError (400): ragged lists, wrong types, values out of range, a wrong shape.
    """
    if type(value) is list:
        shape, flat, kinds = _flattened(signature, spec, value)
    else:
        shape, flat, kinds = (), [value], {type(value)}
    check_shape(signature, spec, shape)
    return column(signature, spec, flat, kinds, lambda at: _place(at, shape)).reshape(shape)


def _place(index: int, shape: tuple[int, ...]) -> str:
    return f" at {[int(axis) for axis in np.unravel_index(index, shape)]}" if shape else ""


def _flattened(
    signature: Signature, spec: TensorSpec, level: list[Any]
) -> tuple[tuple[int, ...], list[Any], set[type]]:
    """Return shape, values in order and the types among them."""
    shape: list[int] = []
    rows = 1
    while True:
        shape.append(len(level) // (rows or 1))
        rows = len(level)
        inner = _unpacked(level) if spec.dtype != STRING else None
        if inner is None:
            kinds = set(map(type, level))
            if kinds != {list}:
                break
            inner = _joined(signature, spec, level)
        level = inner
        if len(shape) == _RANK:
            raise refused(signature, spec, f"lists more than {_RANK} deep were given")
    if list in kinds:
        raise refused(signature, spec, "lists and single values side by side were given")
    return tuple(shape), level, kinds


def _unpacked(level: list[Any]) -> list[Any] | None:
    """Return the items of lists of one item each, None where that is not all there is.

    An image's channel: this is three times as fast as checks and a chain. Text or an object, which
    can be unpacked, too, leaves a string among the values, which is no number.
    """
    if not level or type(level[0]) is not list or len(level[0]) != 1:
        return None
    try:
        return [item for (item,) in level]
    except (TypeError, ValueError):
        return None


def _joined(signature: Signature, spec: TensorSpec, level: list[list[Any]]) -> list[Any]:
    sizes = set(map(len, level))
    if len(sizes) > 1:
        some = " and ".join(map(str, sorted(sizes)[:2]))
        raise refused(signature, spec, f"lists of {some} values side by side were given")
    return list(chain.from_iterable(level))


def column(
    signature: Signature,
    spec: TensorSpec,
    flat: list[Any],
    kinds: set[type],
    place: Callable[[int], str],
) -> Tensor:
    """Return Python's values as a tensor with one axis; ``kinds`` are the types among them.

    ``place`` says where the value at an index stands, for the error (RequestError, 400).
    """
    allowed = _KINDS.get(spec.dtype)
    if allowed is None:
        given = "text cannot hold that type: send application/x-npy"
        raise refused(signature, spec, given, fix=False)
    if not kinds <= allowed:
        at = next(at for at, value in enumerate(flat) if type(value) not in allowed)
        raise refused(signature, spec, f"{_shown(flat[at])}{place(at)} was given")
    if spec.dtype in _FLOATS:
        wide: Tensor = np.frombuffer(array("d", flat), np.float64)
        return narrowed(signature, spec, wide, place)
    if spec.dtype in _INTEGERS:
        return _integers(signature, spec, flat, kinds, place)
    if spec.dtype == STRING:
        return _strings(signature, spec, flat, place)
    return np.array(flat, bool)


def narrowed(
    signature: Signature, spec: TensorSpec, wide: Tensor, place: Callable[[int], str]
) -> Tensor:
    """Return floats as the input's float type; raises RequestError (400) for one out of range."""
    with np.errstate(over="ignore", invalid="ignore"):  # A signalling NaN is NaN, too.
        narrow = wide.astype(numpy_type(spec.dtype), copy=False)
        if narrow is wide or not np.isinf(narrow).any():
            return narrow
        lost = np.flatnonzero(np.isinf(narrow) & np.isfinite(wide))
    if lost.size:
        at = int(lost[0])
        given = f"{wide.reshape(-1)[at]}{place(at)} is out of its range"
        raise refused(signature, spec, given, fix=False)
    return narrow


def _integers(
    signature: Signature,
    spec: TensorSpec,
    flat: list[Any],
    kinds: set[type],
    place: Callable[[int], str],
) -> Tensor:
    if float in kinds:  # JSON has one kind of number: 2.0 is an integer, 1.5 is none.
        for at, value in enumerate(flat):
            if type(value) is float and not (value.is_integer() and abs(value) <= 2**53):
                raise refused(signature, spec, f"{_shown(value)}{place(at)} was given")
        flat = list(map(int, flat))
    code = _INTEGERS[spec.dtype]
    try:
        return np.frombuffer(array(code, flat), spec.dtype)
    except OverflowError:
        low, high = np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max
        at = next(at for at, value in enumerate(flat) if not low <= value <= high)
        given = f"{flat[at]}{place(at)} is not in {low} to {high}"
        raise refused(signature, spec, given, fix=False) from None


def _strings(
    signature: Signature,
    spec: TensorSpec,
    flat: list[Any],
    place: Callable[[int], str],
) -> Tensor:
    found: Tensor = np.empty(len(flat), object)
    for at, value in enumerate(flat):
        try:
            found[at] = value if type(value) is bytes else as_bytes(value)
        except ValueError as error:
            raise refused(signature, spec, f"{error}{place(at)}", fix=False) from None
    return found


def as_bytes(value: str | dict[str, Any]) -> bytes:
    """Return a JSON string as UTF-8, or what ``{"b64": ...}`` holds, in either alphabet of base64.

    Raises ValueError.
    """
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise ValueError("half a surrogate pair was given, which is no text") from None
    text = value.get("b64")
    if len(value) != 1 or not isinstance(text, str):
        raise ValueError('an object that is not {"b64": "..."} was given')
    try:
        plain = text.encode("ascii").translate(_URL_SAFE, b" \t\r\n").rstrip(b"=")
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise ValueError('"b64" without valid base64 was given') from None


def _shown(value: Any) -> str:
    names = {dict: "an object", list: "a list", type(None): "null", bool: str(value).lower()}
    if type(value) in names:
        return names[type(value)]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


# ---------------------------------------------------------------------------- to JSON


def plain(name: str, value: Any) -> Any:
    """Return an output as orjson writes it: an array or a number of numpy's, lists of strings.

    Names that end in ``_bytes`` are base64 always, others where they are not UTF-8.
    Raises RequestError (406) for a type that JSON cannot hold.
    """
    found = np.asarray(value)
    if found.dtype.kind in "OSU":
        return _texts(found, always=name.endswith("_bytes"))
    dtype: Any
    if found.dtype.kind in "biuf" and found.dtype.itemsize <= 8:
        dtype = found.dtype.newbyteorder("=")
    elif "float" in found.dtype.name:
        dtype = np.float32
    elif "int" in found.dtype.name:
        dtype = np.int8
    else:
        spec = TensorSpec(name=name, dtype=found.dtype.name, shape=found.shape)
        raise RequestError(
            f"output {name!r} is {describe(spec)}, which text cannot hold: accept"
            " application/x-npy",
            406,
        )
    with np.errstate(invalid="ignore"):  # A signalling NaN is NaN, too.
        return np.asarray(found, dtype, order="C")[()]


def _texts(value: Tensor, *, always: bool) -> Any:
    if value.ndim:
        return [_texts(np.asarray(row, value.dtype), always=always) for row in value]
    item = value[()]
    if isinstance(item, np.ndarray):
        item = item[()]
    data = item.encode() if isinstance(item, str) else bytes(item)
    if not always:
        try:
            return data.decode()
        except UnicodeDecodeError:
            pass
    return {"b64": base64.b64encode(data).decode()}


def finite(value: Any) -> bool:
    """Return whether orjson may write it: of NaN and Infinity it makes null."""
    return (
        not isinstance(value, (np.ndarray, np.floating))
        or value.dtype.kind != "f"
        or bool(np.isfinite(value).all())
    )


def text(value: Any) -> bytes:
    """Return the JSON text of what ``plain`` returned: the shortest that reads back equal.

    NaN, Infinity and -Infinity are the tokens that Python, JavaScript and TensorFlow Serving read.
    """
    found = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    if finite(value):
        return found
    pieces = found.split(b"null")
    whole = np.asarray(value)
    odd = whole[~np.isfinite(whole)].tolist()
    tokens = [b"NaN" if one != one else b"Infinity" if one > 0 else b"-Infinity" for one in odd]
    return b"".join(chain.from_iterable(zip(pieces, [*tokens, b""], strict=True)))


def _written(value: Any) -> Any:
    return value if finite(value) else orjson.Fragment(text(value))


def columns_text(outputs: Mapping[str, Any]) -> bytes:
    """Return ``{"outputs": ...}``: the value of one output, an object of several."""
    found = {name: _written(plain(name, value)) for name, value in outputs.items()}
    value = found if len(found) != 1 else next(iter(found.values()))
    return orjson.dumps({"outputs": value}, option=orjson.OPT_SERIALIZE_NUMPY)


def rows_text(signature: str, outputs: Mapping[str, Any]) -> bytes:
    """Return ``{"predictions": [...]}``: values of one output, objects of several.

    Raises RequestError (400) where the outputs have no common batch axis.
    """
    check_rows(signature, outputs)
    found = {name: plain(name, value) for name, value in outputs.items()}
    if len(found) == 1:
        rows = _written(next(iter(found.values())))
    else:
        columns = [
            list(value) if finite(value) else [orjson.Fragment(text(row)) for row in value]
            for value in found.values()
        ]
        rows = [dict(zip(found, row, strict=True)) for row in zip(*columns, strict=True)]
    return orjson.dumps({"predictions": rows}, option=orjson.OPT_SERIALIZE_NUMPY)


def check_rows(signature: str, outputs: Mapping[str, Any]) -> None:
    """Raise RequestError (400) unless all outputs have a first axis of one length."""
    length = None
    for name, value in outputs.items():
        shape: Sequence[int] = np.shape(value)
        if not shape or length not in (None, shape[0]):
            has = f"{shape[0]} rows where others have {length}" if shape else "no batch axis"
            raise RequestError(
                f"signature {signature!r}: output {name!r} has {has}, so that there is no answer "
                'by rows: ask with {"inputs": ...}, which is answered with {"outputs": ...}'
            )
        length = shape[0]

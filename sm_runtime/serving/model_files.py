"""What the files of a model say before TensorFlow is imported: signatures, versions, and damage.

The formats: ``saved_model.pb`` is a SavedModel message (tensorflow/core/protobuf/saved_model.proto)
in protobuf's wire format; a ``.keras`` file is a zip; a ``.h5`` file is HDF5.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from sm_runtime.job.errors import ModelError
from sm_runtime.serving.values import Signature, TensorSpec

SAVED_MODEL = "saved_model.pb"
KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")
DEFAULT_SIGNATURE = "serving_default"
_SERVE_TAG = "serve"
_INTERNAL_SIGNATURES = ("__saved_model_init_op", "__saved_model_train_op")
_CALLABLES = ("serve", "__call__")
"""Functions of an object that are called where a model has no signatures, the first one first."""
_DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string",
    8: "complex64", 9: "int64", 10: "bool", 11: "qint8", 12: "quint8", 13: "qint32",
    14: "bfloat16", 15: "qint16", 16: "quint16", 17: "uint16", 18: "complex128", 19: "float16",
    20: "resource", 21: "variant", 22: "uint32", 23: "uint64", 24: "float8_e5m2",
    25: "float8_e4m3fn", 29: "int4", 30: "uint4",
}  # fmt: skip
"""TensorFlow's numbers of dtypes (tensorflow/core/framework/types.proto)."""
_HEAD_BYTES = 512
_JSON_BYTES = 1 << 28
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_TABLE_MAGIC = bytes.fromhex("57fb808b247547db")
"""The end of a ``variables.index``, as of every LevelDB table."""
_AGAIN = "copy or save the model again"
_FOREIGN = (
    (b"version https://git-lfs", "is a Git LFS pointer; run `git lfs pull`, then pack the model"),
    (b"<!doctype html", "is an HTML page; download the model again"),
    (b"<html", "is an HTML page; download the model again"),
    (b"<?xml", "is an XML document, as stores answer errors; download the model again"),
    (b"\x1f\x8b", "is a gzip archive; unpack it"),
    (b"\x80\x04", "is a pickle; save the model with TensorFlow or Keras"),
    (b"\x80\x05", "is a pickle; save the model with TensorFlow or Keras"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedModel:
    """What a ``saved_model.pb`` says of the graph that is served."""

    signatures: Mapping[str, Signature] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    tensorflow_version: str = ""
    functions: tuple[str, ...] = ()
    """Those of ``serve`` and ``__call__`` that the saved object has."""
    has_variables: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KerasFile:
    """What a Keras file says of itself."""

    is_zip: bool
    """The format ``.keras``; else HDF5."""
    keras_version: str = ""
    """Of a ``.keras`` file."""


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field of a protobuf message: an integer, or bytes.

    Raises ValueError where it is not in wire format; what follows a damage is not read.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if not number or at + size > len(message):
            raise ValueError(f"field {number} of {size} bytes at byte {at}")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if at >= len(message):
            raise ValueError(f"a number is cut off at byte {at}")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
        shift += 7
    raise ValueError(f"a number of more than 64 bits before byte {at}")


def submessages(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the values of one repeated field of bytes."""
    for found, value in fields(message):
        if found == number:
            if isinstance(value, int):
                raise ValueError(f"field {number} is a number")
            yield value


def submessage(message: memoryview, number: int) -> memoryview:
    """Return the last value of a field of bytes; it is empty where there is none."""
    found = memoryview(b"")
    for value in submessages(message, number):
        found = value
    return found


def _number(message: memoryview, number: int) -> int:
    found = 0
    for name, value in fields(message):
        if name == number:
            if not isinstance(value, int):
                raise ValueError(f"field {number} is no number")
            found = value
    return found - (1 << 64) if found >> 63 else found


def text(message: memoryview, number: int) -> str:
    """Return the last value of a field of text."""
    return str(submessage(message, number), "utf-8")


def mapping(message: memoryview, number: int) -> dict[str, memoryview]:
    """Return a field that is a map from text to messages."""
    return {text(entry, 1): submessage(entry, 2) for entry in submessages(message, number)}


def read_saved_model(folder: str) -> SavedModel:
    """Return what ``folder/saved_model.pb`` says; its variables are looked at, too.

    Raises ModelError where a file is missing, cannot be read or is damaged, and where the model has
    nothing that could be called.
    """
    path = os.path.join(folder, SAVED_MODEL)
    try:
        found = _saved_model(_mapped(path), path)
    except ValueError as error:
        raise ModelError(
            f"{path} is truncated or no SavedModel ({error}); {_AGAIN} with tf.saved_model.save"
        ) from None
    if found.has_variables:
        _check_variables(os.path.join(folder, "variables"))
    if not found.signatures and not found.functions:
        raise ModelError(
            f"{path} has no signature that can be served; save the model with"
            " tf.saved_model.save(model, folder, signatures=...) or model.export(folder)"
        )
    return found


def _mapped(path: str) -> memoryview:
    """Return a file's content without a copy; raise ModelError where it cannot be a model's."""
    _check_head(path)
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _check_head(path: str) -> bytes:
    """Return a file's first bytes; raise ModelError where they are those of no model."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except IsADirectoryError:
        raise ModelError(f"{path} is a folder, not a file; {_AGAIN}") from None
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}); make it readable for user {os.geteuid()}"
        ) from None
    if not head:
        raise ModelError(f"{path} is empty; {_AGAIN}")
    start = head.lstrip().lower()
    for magic, why in _FOREIGN:
        if start.startswith(magic):
            raise ModelError(f"{path} {why}")
    return head


def _saved_model(content: memoryview, path: str) -> SavedModel:
    graphs = [_graph(graph) for graph in submessages(content, 2)]
    if not graphs:
        raise ValueError("it holds no graph")
    # As TensorFlow Serving chooses, and models for TPUs or GPUs have a second graph with more tags;
    # a graph without `serve`, as for training alone, is nothing to be served.
    served = [graph for graph in graphs if _SERVE_TAG in graph.tags]
    if not served:
        tags = "; ".join(", ".join(graph.tags) or "none" for graph in graphs)
        raise ModelError(
            f"{path} has no graph with the tag {_SERVE_TAG!r}, only with: {tags}; save it with"
            f" tags=[{_SERVE_TAG!r}]"
        )
    return min(served, key=lambda graph: len(graph.tags))


def _graph(graph: memoryview) -> SavedModel:
    """Read a MetaGraphDef."""
    info = submessage(graph, 1)
    saved_object = submessage(graph, 7)
    read = {
        name: _signature(name, definition)
        for name, definition in mapping(graph, 5).items()
        if name not in _INTERNAL_SIGNATURES
    }
    return SavedModel(
        signatures={
            name: signature for name, signature in sorted(read.items()) if signature is not None
        },
        tags=tuple(str(tag, "utf-8") for tag in submessages(info, 4)),
        tensorflow_version=text(info, 5),
        functions=_functions(saved_object),
        has_variables=bool(saved_object) or bool(submessage(graph, 3)),
    )


def _functions(saved_object: memoryview) -> tuple[str, ...]:
    """Return which functions the root of a SavedObjectGraph has: it is the first node."""
    for node in submessages(saved_object, 1):
        names = {text(child, 2) for child in submessages(node, 1)}
        return tuple(name for name in _CALLABLES if name in names)
    return ()


def _signature(name: str, definition: memoryview) -> Signature | None:
    """Read a SignatureDef; None where it takes or gives what no request can hold."""
    inputs = _tensors(mapping(definition, 1))
    outputs = _tensors(mapping(definition, 2))
    if inputs is None or outputs is None:
        return None
    method = text(definition, 3).rpartition("/")[2]
    if method not in ("classify", "regress"):
        method = "predict"
    return Signature(name=name, method=method, inputs=inputs, outputs=outputs)


def _tensors(found: Mapping[str, memoryview]) -> dict[str, TensorSpec] | None:
    """Read TensorInfo messages; None where one is sparse, composite, or of no dtype for data."""
    specs = {}
    for name, info in sorted(found.items()):
        numbers = {number for number, _ in fields(info)}
        if numbers & {4, 5}:
            return None
        dtype = _DTYPES.get(_number(info, 2), "")
        if dtype in ("", "resource", "variant"):
            return None
        specs[name] = TensorSpec(name=name, dtype=dtype, shape=_shape(submessage(info, 3)))
    return specs


def _shape(message: memoryview) -> tuple[int | None, ...] | None:
    if _number(message, 3):
        return None
    sizes = [_number(axis, 1) for axis in submessages(message, 2)]
    return tuple(None if size < 0 else size for size in sizes)


def default_signature(signatures: Mapping[str, Signature]) -> str:
    """Return the signature that answers where a request names none."""
    if DEFAULT_SIGNATURE in signatures:
        return DEFAULT_SIGNATURE
    predicting = [each.name for each in signatures.values() if each.method == "predict"]
    return (predicting or [*signatures])[0]


def _check_variables(folder: str) -> None:
    """Raise ModelError where files of a checkpoint are missing, empty or no checkpoint's."""
    index = os.path.join(folder, "variables.index")
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise ModelError(
            f"{folder} cannot be read ({error.strerror}), and the model has its weights there;"
            f" {_AGAIN} with all its files"
        ) from None
    if "variables.index" not in names:
        raise ModelError(f"{index} is missing; {_AGAIN} with all its files")
    _check_head(index)
    with open(index, "rb") as file:
        file.seek(max(0, os.path.getsize(index) - len(_TABLE_MAGIC)))
        if file.read() != _TABLE_MAGIC:
            raise ModelError(f"{index} is truncated or no index of a checkpoint; {_AGAIN}")
    missing = _missing_shards(names)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{os.path.join(folder, missing[0])}{more} is missing; {_AGAIN} with all its files"
        )
    for name in names:
        if name.startswith("variables.data-"):
            _check_head(os.path.join(folder, name))


def _missing_shards(names: Iterable[str]) -> list[str]:
    shards = {}
    for name in names:
        if match := re.fullmatch(r"variables\.data-(\d{5})-of-(\d{5})", name):
            shards[name] = int(match[2])
    if not shards:
        return ["variables.data-00000-of-00001"]
    count = max(shards.values())
    every = (f"variables.data-{number:05}-of-{count:05}" for number in range(count))
    return [name for name in every if name not in shards]


def read_keras(path: str) -> KerasFile | None:
    """Return what a Keras file says of itself; None where it holds weights without a model.

    Raises ModelError where it cannot be read or is damaged.
    """
    head = _check_head(path)
    if head.startswith(_HDF5_MAGIC):
        _check_hdf5(path, head)
        return KerasFile(is_zip=False) if _has_model(path) else None
    if not path.endswith(".keras"):
        raise ModelError(f"{path} is no HDF5 file; {_AGAIN} with model.save")
    try:
        with zipfile.ZipFile(path) as archive:
            return _keras_zip(path, archive)
    # Also an encrypted member, and JSON nested too deep: both are a RuntimeError.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path} is truncated or no Keras file ({error}); {_AGAIN} with model.save"
        ) from None


def _keras_zip(path: str, archive: zipfile.ZipFile) -> KerasFile:
    names = archive.namelist()
    if "config.json" not in names:
        raise ModelError(f"{path} has no config.json, as Keras files have; {_AGAIN}")
    if not any(name.startswith("model.weights") for name in names):
        raise ModelError(f"{path} has no model.weights.h5; {_AGAIN}")
    for name in ("config.json", "metadata.json"):
        if name in names and archive.getinfo(name).file_size > _JSON_BYTES:
            raise ModelError(f"{path}: {name} is larger than {_JSON_BYTES} bytes; {_AGAIN}")
    json.loads(archive.read("config.json"))
    metadata = json.loads(archive.read("metadata.json")) if "metadata.json" in names else {}
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    return KerasFile(is_zip=True, keras_version=version if isinstance(version, str) else "")


def _check_hdf5(path: str, head: bytes) -> None:
    """Raise ModelError where an HDF5 file is shorter than it says.

    The superblock says where the file ends (HDF5 File Format Specification, II.A).
    """
    size = os.path.getsize(path)
    head = head.ljust(_HEAD_BYTES, b"\0")
    version = head[8]
    width = head[13] if version < 2 else head[9]
    start = {0: 24, 1: 28}.get(version, 12) + 2 * width
    end = int.from_bytes(head[start : start + width], "little")
    if version > 3 or width not in (2, 4, 8) or end > size or size < start + width:
        raise ModelError(
            f"{path} is truncated or damaged (it has {size} bytes, and says {end}); {_AGAIN}"
        )


def _has_model(path: str) -> bool:
    """Whether an HDF5 file has the attribute that holds a model's architecture; weights have not.

    Attributes' names are stored as they are, never compressed.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"model_config") >= 0

"""Model files as TensorFlow and Keras write them, made without either."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

FLOAT, STRING, INT64 = 1, 7, 9
Spec = tuple[int, tuple[int, ...]]
TABLE_MAGIC = bytes.fromhex("57fb808b247547db")


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(*fields: tuple[int, int | bytes | str]) -> bytes:
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            value = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def tensor(spec: Spec) -> bytes:
    dtype, shape = spec
    axes = message(*((2, message((1, size))) for size in shape))
    return message((1, "x:0"), (2, dtype), (3, axes))


def signature(
    inputs: Mapping[str, Spec], outputs: Mapping[str, Spec], method: str = "predict"
) -> bytes:
    return message(
        *((1, message((1, name), (2, tensor(spec)))) for name, spec in inputs.items()),
        *((2, message((1, name), (2, tensor(spec)))) for name, spec in outputs.items()),
        (3, f"tensorflow/serving/{method}"),
    )


PLAIN = {"serving_default": signature({"x": (FLOAT, (-1, 2))}, {"y": (FLOAT, (-1,))})}


def graph(
    signatures: Mapping[str, bytes] = PLAIN,
    tags: tuple[str, ...] = ("serve",),
    functions: tuple[str, ...] = (),
    is_object: bool = True,
) -> bytes:
    info = message(*((4, tag) for tag in tags), (5, "2.15.1"))
    children = message(*((1, message((1, 1), (2, name))) for name in functions), (7, b"user"))
    return message(
        (1, info),
        (2, b"\x12\x03abc"),
        *((5, message((1, name), (2, value))) for name, value in signatures.items()),
        *([(7, message((1, children)))] if is_object else []),
    )


def saved_model(folder: Path, *graphs: bytes, variables: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = message((1, 1), *((2, one) for one in graphs or (graph(),)))
    (folder / "saved_model.pb").write_bytes(content)
    if variables:
        (folder / "variables").mkdir()
        (folder / "variables/variables.index").write_bytes(b"index" + TABLE_MAGIC)
        (folder / "variables/variables.data-00000-of-00001").write_bytes(b"data")
    return folder


def keras_zip(path: Path, version: str = "2.15.0", leave_out: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {
        "metadata.json": json.dumps({"keras_version": version}),
        "config.json": "{}",
        "model.weights.h5": "weights",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            if name != leave_out:
                archive.writestr(name, text)
    return path


def hdf5(path: Path, *, superblock: int = 0, has_model: bool = True, lacking: int = 0) -> Path:
    """Write the outline of an HDF5 file, of which the last ``lacking`` bytes are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = b"model_config" if has_model else b"weights_only"
    magic, size = b"\x89HDF\r\n\x1a\n", 1000
    numbers = b"".join(number.to_bytes(8, "little") for number in (0, 2**64 - 1, size))
    if superblock < 2:
        head = magic + bytes([superblock, 0, 0, 0, 0, 8, 8, 0]) + bytes(8)
        head += bytes(4 * superblock) + numbers
    else:
        head = magic + bytes([superblock, 8, 8, 0]) + numbers
    path.write_bytes((head + body).ljust(size, b"\0")[: size - lacking])
    return path

"""Bodies by their media type: which types are taken and given, CSV, npy and raw bytes."""

from __future__ import annotations

import csv
import io
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import orjson

from sm_runtime.serving.media import CSV, JSON, NPY, MediaType, media_types
from sm_runtime.serving.signature import check_shape, describe, misshapen, refused
from sm_runtime.serving.tensors import (
    Tensor,
    check_rows,
    column,
    columns_text,
    narrowed,
    numpy_type,
    plain,
    rows_text,
    text,
)
from sm_runtime.serving.values import STRING, RequestError, Signature, TensorSpec

JSON_LINES = "application/jsonlines"
JSONS = "application/jsons"
TAKEN = (JSON, JSON_LINES, JSONS, CSV, NPY)
RAW = ("application/octet-stream", "application/x-image", "image/*")
"""Taken by signatures with one string input: the body is its value."""
GIVEN = (JSON, JSON_LINES, JSONS, CSV, NPY)

_BLOCK = 1 << 20
"""Bytes of CSV that are numbers in Python's memory at a time."""
_CELLS = 50_000
_NUMBERS = b"0123456789eE+-., \t\r\n"
_NPY_MAGIC = b"\x93NUMPY"
_NPY_HEADER = 10_000
"""numpy's own limit of a header's length, in bytes."""
_NPY_PAIR = (
    rb"""["'](?P<key>descr|fortran_order|shape)["']:(?:["'](?P<descr>[<>|=]?[?a-zA-Z]\d{0,9}(?:\[\w+\])?)["']"""
    rb"""|(?P<fortran>True|False)|\((?P<shape>[\d,]*)\)),?"""
)
_NPY_ITEM = re.compile(_NPY_PAIR)
_NPY_DICT = re.compile(rb"\{(?:" + re.sub(rb"\?P<\w+>", b"?:", _NPY_PAIR) + rb"){3}\}")
"""numpy reads the header as a Python literal, with all that hostile ones cost and warn of."""
_WORST_NUMBER = 400
"""Characters of a number in CSV at most."""


# ------------------------------------------------------------------------- media types


def content_type(header: str | None, signature_takes_bytes: Callable[[], bool]) -> MediaType:
    """Return the media type of a body.

    Raises RequestError (415) that lists what is taken, also where there is no header, as AWS's
    image does.
    """
    found = (media_types(header or "") or (MediaType("", {}),))[0]
    charset = found.parameters.get("charset", "utf-8").lower()
    if charset not in ("utf-8", "utf8", "us-ascii", "ascii"):
        raise RequestError(f"charset {charset[:60]!r} is not taken, only utf-8", 415)
    if found.name in TAKEN or (_is_raw(found.name) and signature_takes_bytes()):
        return found
    given = f"content type {found.name[:100]!r} is not taken" if found.name else "no Content-Type"
    raise RequestError(
        f"{given}: send {', '.join(TAKEN)}, or {', '.join(RAW)} to a signature with one "
        "string input",
        415,
    )


def _is_raw(name: str) -> bool:
    return name in RAW or name.startswith("image/")


def takes_bytes(signature: Signature) -> bool:
    """Return whether a body of raw bytes is a valid input."""
    specs = list(signature.inputs.values())
    return (
        len(specs) == 1
        and specs[0].dtype == STRING
        and (specs[0].shape is None or specs[0].shape in ((), (None,), (1,)))
    )


def accepted(header: str | None, default: str, possible: Sequence[str]) -> str:
    """Return which of the possible media types an Accept header asks for most.

    ``default`` is meant by no header and by ``*/*``; it gives way to the first possible type where
    it is none. Raises RequestError (406) that lists the possible ones.
    """
    usual = default if default in possible else possible[0]
    ranges = [(one.quality, one.name) for one in media_types(header or "*/*")]
    best, found = 0.0, None
    for quality, name in ranges:
        if quality > best:
            chosen = _first(name, usual, possible, {one for q, one in ranges if not q})
            if chosen is not None:
                best, found = quality, chosen
    if found is None:
        raise RequestError(
            f"{(header or '')[:200]!r} cannot be met: this is answered as {', '.join(possible)}",
            406,
        )
    return found


def _first(name: str, usual: str, possible: Sequence[str], never: set[str]) -> str | None:
    for one in (usual, *possible):
        if one not in never and name in ("*/*", "*", one, one.partition("/")[0] + "/*"):
            return one
    return None


def given_types(signature: Signature, *, results: bool = False) -> tuple[str, ...]:
    """Return the media types in which a signature's answer can be written.

    ``results``: it is classify's or regress'.
    """
    if results:
        return (JSON, JSON_LINES, JSONS)
    specs = list(signature.outputs.values())
    as_npy = len(specs) == 1 and specs[0].dtype != STRING
    return GIVEN if as_npy else GIVEN[:-1]


def written(media: str, signature: str, outputs: Mapping[str, Any], *, rows: bool) -> bytes:
    """Return the outputs in a media type of ``given_types``.

    JSON lines have the whole answer in one line, as AWS's image writes them. The last line has no
    end: batch transform puts one between answers. ``rows``: the request was in row form. Raises
    RequestError (400, 406).
    """
    if media == CSV:
        return _written_csv(signature, outputs)
    if media == NPY:
        return _written_npy(outputs)
    return rows_text(signature, outputs) if rows else columns_text(outputs)


# --------------------------------------------------------------------------- raw bytes


def raw_inputs(signature: Signature, body: bytes | memoryview) -> dict[str, Tensor]:
    """Return the body as the signature's one string input."""
    spec = next(iter(signature.inputs.values()))
    value: Tensor = np.empty((), object)
    value[()] = bytes(body)
    return {spec.name: value if spec.shape == () else value.reshape(1)}


# --------------------------------------------------------------------------------- CSV


def csv_inputs(signature: Signature, body: bytes | memoryview) -> dict[str, Tensor]:
    """Return rows of CSV (RFC 4180, no header) as the signature's one input.

    A row is an instance: its values fill the axes after the first in order, and one value a row is
    a scalar where the shape allows it. Raises RequestError (400).
    """
    if len(signature.inputs) != 1:
        raise misshapen(signature, "CSV has no names of inputs: send JSON")
    spec = next(iter(signature.inputs.values()))
    if spec.shape == ():
        raise refused(signature, spec, "CSV has rows, and it has no batch axis: send JSON")
    reader = _CsvReader(signature, spec)
    data = bytes(body).removeprefix(b"\xef\xbb\xbf")
    if spec.dtype == STRING or b'"' in data:
        reader.read_cells(data)
    else:
        for block in _blocks(data):
            reader.read_block(block)
    return {spec.name: reader.tensor()}


def _blocks(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        end = data.find(b"\n", start + _BLOCK) + 1 or len(data)
        yield data[start:end]
        start = end


class _CsvReader:
    """Rows of CSV become values, block by block: Python's numbers take ten times the text."""

    def __init__(self, signature: Signature, spec: TensorSpec) -> None:
        self.signature = signature
        self.spec = spec
        self.rows = 0
        self.columns = 0
        self._numbers = bytearray()
        self._strings: list[Tensor] = []

    def read_block(self, block: bytes) -> None:
        """Read whole rows without quotes: as JSON where that is possible, which is quicker."""
        if not block.translate(None, _NUMBERS):
            lines = [line for line in block.splitlines() if line.strip()]
            try:
                rows = orjson.loads(b"[[" + b"],[".join(lines) + b"]]") if lines else []
            except orjson.JSONDecodeError:
                rows = None  # "+1", ".5", an empty value, or a wrong one.
            if rows is not None and self._even(set(map(len, rows))):
                flat = list(chain.from_iterable(rows))
                self._add(len(rows), flat, set(map(type, flat)))
                return
        self.read_cells(block)

    def _even(self, widths: set[int]) -> bool:
        return len(widths) <= 1 and (not self.rows or widths <= {self.columns})

    def read_cells(self, data: bytes) -> None:
        """Read whole rows by the rules of RFC 4180."""
        lines = io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="")
        reader = csv.reader(lines, strict=True)
        flat: list[Any] = []
        count = 0
        try:
            for row in reader:
                if not row or (len(row) == 1 and not row[0].strip()):
                    continue
                if not self.columns:
                    self.columns = len(row)
                if len(row) != self.columns:
                    given = f"row {self.rows + count + 1} has {len(row)} values, row 1 has "
                    raise self._refused(f"{given}{self.columns}")
                flat += self._cells(row, self.rows + count + 1)
                count += 1
                if len(flat) >= _CELLS:
                    self._add(count, flat, set(map(type, flat)))
                    flat, count = [], 0
        except (csv.Error, UnicodeDecodeError) as error:
            raise RequestError(f"the body is not CSV: {error}") from None
        self._add(count, flat, set(map(type, flat)))

    def _cells(self, row: list[str], number: int) -> Iterable[Any]:
        if self.spec.dtype == STRING:
            return row
        if "float" in self.spec.dtype:
            try:
                return _decimals(row)
            except ValueError:
                pass
        parse = _parse_bool if self.spec.dtype == "bool" else _parse_number
        found = [parse(cell) for cell in row]
        if None in found:
            at = found.index(None)
            cell = repr(row[at]) if len(row[at]) <= 60 else f"{row[at][:60]!r}..."
            raise self._refused(f"{cell} was given in row {number}, value {at + 1}")
        return found

    def _add(self, count: int, flat: list[Any], kinds: set[type]) -> None:
        if not count:
            return
        self.columns = self.columns or len(flat) // count
        first, width = self.rows, self.columns
        found = column(
            self.signature,
            self.spec,
            flat,
            kinds,
            lambda at: f" in row {first + at // width + 1}, value {at % width + 1}",
        )
        self.rows += count
        if self.spec.dtype == STRING:
            self._strings.append(found)
        else:
            self._numbers += found.view(np.uint8).data

    def tensor(self) -> Tensor:
        """Return what was read, in the input's shape."""
        if not self.rows:
            raise self._refused("the body has no rows")
        if self.spec.dtype == STRING:
            found: Tensor = np.concatenate(self._strings)
        else:
            found = np.frombuffer(self._numbers, numpy_type(self.spec.dtype))
        return found.reshape(self.rows, *self._axes())

    def _axes(self) -> tuple[int, ...]:
        """Return the axes after the first."""
        shape, width = self.spec.shape, self.columns
        if shape is None:
            return () if width == 1 else (width,)
        known = [axis for axis in shape[1:] if axis is not None]
        size = int(np.prod(known, dtype=object)) if known else 1
        free = len(shape) - 1 - len(known)
        fits = (free == 0 and size == width) or (free == 1 and size and width % size == 0)
        if not fits or shape[0] not in (None, self.rows):
            values = "value" if width == 1 else "values"
            raise self._refused(f"{self.rows} rows of {width} {values} were given")
        return tuple(width // size if axis is None else axis for axis in shape[1:])

    def _refused(self, given: str) -> RequestError:
        return refused(self.signature, self.spec, given, fix=False)


def _decimals(row: list[str]) -> list[float]:
    """Return the numbers of a row, all of them at once."""
    whole = "".join(row)
    if "_" in whole or not whole.isascii():
        raise ValueError("no numbers of CSV")
    return [float(cell) for cell in row]


def _parse_number(cell: str) -> int | float | None:
    """Return a number, None for what is none; Python's ``1_000`` and other scripts' digits are."""
    if len(cell) > _WORST_NUMBER or "_" in cell or not cell.isascii():
        return None
    try:
        return int(cell) if len(cell) < 25 else float(cell)
    except ValueError:
        pass
    try:
        return float(cell)
    except ValueError:
        return None


def _parse_bool(cell: str) -> bool | None:
    return {"true": True, "1": True, "false": False, "0": False}.get(cell.strip().lower())


def _written_csv(signature: str, outputs: Mapping[str, Any]) -> bytes:
    """Return a row for each instance: the values of its outputs, in the outputs' order."""
    check_rows(signature, outputs)
    columns = [_rows_csv(plain(name, value)) for name, value in outputs.items()]
    rows = columns[0] if len(columns) == 1 else map(b",".join, zip(*columns, strict=True))
    return b"\n".join(rows)


def _rows_csv(value: Any) -> list[bytes]:
    if isinstance(value, list):
        return [b",".join(_texts_csv(row)) for row in value]
    if not value.size:
        return [b""] * len(value)
    found = text(value.reshape(len(value), -1))
    return found[2:-2].split(b"],[")


def _texts_csv(value: Any) -> list[bytes]:
    if isinstance(value, list):
        return [cell for one in value for cell in _texts_csv(one)]
    cell = value if isinstance(value, str) else value["b64"]
    if cell == "" or re.search(r'[",\r\n]', cell):
        cell = '"' + cell.replace('"', '""') + '"'
    return [cell.encode()]


# --------------------------------------------------------------------------------- npy


def npy_inputs(signature: Signature, body: bytes | memoryview) -> dict[str, Tensor]:
    """Return the array of a ``.npy`` file as the signature's one input, without a copy if possible.

    Pickles are never read. Numbers of another type are taken where each value can be held.
    Raises RequestError (400; 415 for an archive).
    """
    if len(signature.inputs) != 1:
        raise misshapen(signature, "npy has no names of inputs: send JSON")
    spec = next(iter(signature.inputs.values()))
    given = read_npy(body)
    check_shape(signature, spec, given.shape)
    return {spec.name: _converted(signature, spec, given)}


def read_npy(body: bytes | memoryview) -> Tensor:
    """Return the array of a ``.npy`` file, a view of the body.

    Header, length and type are checked before anything is allocated. Raises RequestError.
    """
    if bytes(body[:4]) == b"PK\x03\x04":
        raise RequestError("the body is an npz archive, which is not taken: send one npy", 415)
    lead = bytes(body[:12])
    if not lead.startswith(_NPY_MAGIC) or len(lead) < 12 or lead[6] not in (1, 2, 3):
        raise RequestError("the body is not a npy file")
    length_format, lead_size = ("<H", 10) if lead[6] == 1 else ("<I", 12)
    length = struct.unpack_from(length_format, lead, 8)[0]
    if length > _NPY_HEADER:
        raise RequestError(f"the npy has a header of {length} bytes, at most {_NPY_HEADER}")
    start = lead_size + length
    if len(body) < start:
        raise RequestError("the npy has an invalid header: it ends within it")
    dtype, shape, fortran = _npy_header(bytes(body[lead_size:start]))
    if dtype.hasobject or dtype.fields is not None or dtype.subdtype is not None:
        raise RequestError("the npy holds objects (a pickle) or records, which are not taken")
    count = 1
    for axis in shape:
        count *= axis
    size = count * dtype.itemsize
    if len(shape) > 32 or not dtype.itemsize:
        raise RequestError("the npy has an impossible shape")
    if len(body) != start + size:
        raise RequestError(
            f"the npy has {len(body) - start} bytes of data, where its header says {size}"
        )
    found: Tensor = np.frombuffer(body, np.uint8, size, start).view(dtype)
    try:
        return found.reshape(shape, order="F" if fortran else "C")
    except ValueError:
        raise RequestError("the npy has an impossible shape") from None


@lru_cache(128)
def _npy_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    header = re.sub(rb"\s+", b"", header)
    found = {match["key"]: match for match in _NPY_ITEM.finditer(header)}
    if not _NPY_DICT.fullmatch(header) or len(found) != 3:
        raise RequestError("the npy has an invalid header, or holds records")
    axes = re.findall(rb"\d+", found[b"shape"]["shape"] or b"")
    if not found[b"descr"]["descr"] or any(len(axis) > 18 for axis in axes):
        raise RequestError("the npy has an impossible shape or type")
    try:
        dtype = np.dtype(found[b"descr"]["descr"].decode())
    except (TypeError, ValueError):
        raise RequestError("the npy has an unknown type") from None
    return dtype, tuple(map(int, axes)), found[b"fortran_order"]["fortran"] == b"True"


def _converted(signature: Signature, spec: TensorSpec, given: Tensor) -> Tensor:
    wanted = numpy_type(spec.dtype)
    if given.dtype == wanted or (given.dtype.kind == "V" and wanted.kind == "V"):
        if given.dtype != wanted and given.dtype.itemsize == wanted.itemsize:
            given = given.view(wanted)
        if given.dtype == wanted:
            native = wanted.newbyteorder("=")
            return np.require(given.astype(native, copy=False), requirements=["C", "A"])
    kinds = given.dtype.kind + wanted.kind
    if spec.dtype == STRING and given.dtype.kind in "SU":
        if given.dtype.kind == "U":
            given = np.char.encode(given, "utf-8")
        return given.astype(object)
    if kinds[0] in "iuf" and (kinds[1] == "f" or "float" in spec.dtype):
        return np.asarray(narrowed(signature, spec, given, _nowhere), order="C")
    if kinds[0] in "iu" and kinds[1] in "iu":
        bounds = np.iinfo(wanted)
        if not given.size or (given.min() >= bounds.min and given.max() <= bounds.max):
            return given.astype(wanted, order="C")
    spec_given = TensorSpec(name="", dtype=given.dtype.name, shape=given.shape)
    raise refused(signature, spec, f"{describe(spec_given)} was given", fix=False)


def _nowhere(_: int) -> str:
    return ""


def _written_npy(outputs: Mapping[str, Any]) -> bytes:
    name, value = next(iter(outputs.items()))
    found = np.asarray(value)
    if len(outputs) != 1 or found.dtype.kind in "OSU":
        raise RequestError(f"output {name!r} cannot be written as npy: accept {JSON}", 406)
    if found.dtype.kind == "V":  # npy has no name for ml_dtypes' types; their values are floats'.
        found = found.astype(np.float32 if "float" in found.dtype.name else np.int8)
    stream = io.BytesIO()
    np.save(stream, np.asarray(found, order="C"), allow_pickle=False)
    return stream.getvalue()

"""Arrays as NPY, CSV and JSON, and back; NumPy is imported where it is used."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from . import content_types, errors


def array_to_npy(array_like: Any) -> bytes:
    """Return an array in NumPy's own format."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array_like)
    return buffer.getvalue()


def npy_to_numpy(npy_array: bytes) -> Any:
    """Return the array in ``npy_array``, which may hold pickled objects: from a trusted place."""
    import numpy as np

    return np.load(io.BytesIO(npy_array), allow_pickle=True)


def array_to_json(array_like: Any) -> str:
    """Return an array as JSON."""

    def plain(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return value.tolist()
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")

    return json.dumps(array_like, default=plain)


def json_to_numpy(string_like: str | bytes, dtype: Any = None) -> Any:
    """Return the array in JSON."""
    import numpy as np

    return np.array(json.loads(string_like), dtype=dtype)


def csv_to_numpy(string_like: str, dtype: Any = None) -> Any:
    """Return the array in CSV, without dimensions of length one; of text where it has any.

    Raises ClientError.
    """
    import numpy as np

    try:
        rows = list(csv.reader(io.StringIO(string_like), strict=True))
        array = np.array(rows).squeeze()
    except Exception as error:
        raise errors.ClientError(f"Error while decoding csv: {error}") from error
    try:
        return array.astype(dtype)
    except ValueError as error:
        if dtype is None:
            return array
        raise errors.ClientError(
            f"Error while writing numpy array: {error}. dtype is: {dtype}"
        ) from error


def array_to_csv(array_like: Any) -> str:
    """Return an array of one or two dimensions as CSV.

    Raises ClientError.
    """
    import numpy as np

    array = np.array(array_like)
    if array.ndim == 1:
        array = array.reshape(-1, 1)
    try:
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n", strict=True).writerows(array)
        return stream.getvalue()
    except csv.Error as error:
        raise errors.ClientError(f"Error while encoding csv: {error}") from error


def array_to_recordio_protobuf(array_like: Any, labels: Any = None) -> bytes:
    """Raise NotImplementedError: SageMaker's SDK has it, in ``sagemaker.amazon.common``."""
    raise NotImplementedError(
        "array_to_recordio_protobuf is not in sm_runtime: install sagemaker-training for it, or"
        " use write_numpy_to_dense_tensor of the package sagemaker"
    )


encoders_map = {
    content_types.NPY: array_to_npy,
    content_types.CSV: array_to_csv,
    content_types.JSON: array_to_json,
}
_decoders_map: dict[str, Any] = {
    content_types.NPY: npy_to_numpy,
    content_types.CSV: csv_to_numpy,
    content_types.JSON: json_to_numpy,
}


def decode(obj: Any, content_type: str) -> Any:
    """Return the array in ``obj``.

    Raises UnsupportedFormatError for other content types than NPY, CSV and JSON.
    """
    if content_type not in _decoders_map:
        raise errors.UnsupportedFormatError(content_type)
    return _decoders_map[content_type](obj)


def encode(array_like: Any, content_type: str) -> Any:
    """Return an array in this content type.

    Raises UnsupportedFormatError for others than NPY, CSV and JSON.
    """
    if content_type not in encoders_map:
        raise errors.UnsupportedFormatError(content_type)
    return encoders_map[content_type](array_like)

"""Bodies of requests as numpy arrays."""

import json
from io import BytesIO, StringIO
from typing import Any, Union

from . import content_types, errors


def decode(obj: Union[str, bytes], content_type: str) -> Any:
    """Return the array in a body of JSON, CSV or npy; of a sparse matrix (npz), that of scipy.

    Unlike the toolkit's, a pickle in npy raises ValueError.
    """
    import numpy as np

    if content_type == content_types.JSON:
        return np.array(json.loads(obj))
    if content_type == content_types.CSV:
        text = obj.decode("utf-8") if isinstance(obj, bytes) else obj
        return np.genfromtxt(StringIO(text), dtype=None, delimiter=",")
    data = obj.encode("latin-1") if isinstance(obj, str) else obj
    if content_type == content_types.NPY:
        return np.load(BytesIO(data), allow_pickle=False)
    if content_type == content_types.NPZ:
        from importlib import import_module

        return import_module("scipy.sparse").load_npz(BytesIO(data))
    raise errors.UnsupportedFormatError(content_type)

"""Arrays as bodies of answers."""

import json
from io import BytesIO, StringIO
from typing import Any, Union

from . import content_types, errors

SUPPORTED_CONTENT_TYPES = {content_types.NPY, content_types.CSV, content_types.JSON}


def encode(array_like: Any, content_type: str) -> Union[str, bytes]:
    """Return an array, or what numpy makes one of, as JSON, CSV or npy."""
    import numpy as np

    if content_type == content_types.JSON:
        return json.dumps(array_like, default=_plain)
    if content_type == content_types.CSV:
        text = StringIO()
        np.savetxt(text, array_like, delimiter=",", fmt="%s")
        return text.getvalue()
    if content_type == content_types.NPY:
        data = BytesIO()
        np.save(data, array_like, allow_pickle=False)
        return data.getvalue()
    raise errors.UnsupportedFormatError(content_type)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")

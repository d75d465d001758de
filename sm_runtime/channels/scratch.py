"""A file without a name, for what is too large for memory."""

from __future__ import annotations

import os
from typing import IO

from sm_runtime.job.errors import DataError


def scratch(purpose: str) -> IO[bytes]:
    """Return a file in the folder for temporary files; raise DataError where there is none."""
    from tempfile import mkstemp

    try:
        descriptor, path = mkstemp(prefix="sm-runtime-")
        os.unlink(path)
    except OSError as error:
        raise DataError(f"{purpose} needs a temporary file: {error}") from None
    return os.fdopen(descriptor, "r+b", 1 << 20)

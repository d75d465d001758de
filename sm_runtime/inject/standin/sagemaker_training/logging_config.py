"""The toolkit's logger, and its format."""

from __future__ import annotations

import logging
import shlex
from typing import Any, Sequence

from . import errors

_NAMES = {"sagemaker_training": "sagemaker-training-toolkit"}
_FORMAT = "%(asctime)s %(name)-12s %(levelname)-8s %(message)s"


def get_logger() -> logging.Logger:
    """Return the logger of this package."""
    return logging.getLogger(_NAMES.get(__name__.partition(".")[0], "sagemaker-containers"))


def configure_logger(level: int, log_format: str = _FORMAT) -> None:
    """Have messages of ``level`` and above written to standard error."""
    logging.basicConfig(format=log_format, level=level)
    if level >= logging.INFO:
        for name in ("boto3", "s3transfer", "botocore"):
            logging.getLogger(name).setLevel(level)


def log_script_invocation(
    cmd: Sequence[str], env_vars: Any = None, logger: logging.Logger | None = None
) -> None:
    """Log how the script is started, less what may be a secret: the variables among it."""
    shown = errors.without_secrets(" ".join(map(shlex.quote, cmd)))
    (logger or get_logger()).info(
        "Invoking user script\n\nInvoking script with the following command:\n\n%s\n", shown
    )

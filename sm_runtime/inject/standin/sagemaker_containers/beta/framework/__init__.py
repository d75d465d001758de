"""The public names of ``sagemaker_containers``."""

from __future__ import annotations

from typing import Any, Mapping

import sagemaker_containers  # noqa: F401
from sagemaker_containers import (  # noqa: F401
    content_types,
    encoders,
    entry_point,
    env,
    errors,
    files,
    functions,
    mapping,
    modules,
    mpi,
    params,
    process,
    runner,
    server,
    trainer,
    transformer,
    worker,
)
from sagemaker_containers import logging_config as logging  # noqa: F401


def training_env(
    resource_config: Mapping[str, Any] | None = None,
    input_data_config: Mapping[str, Any] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
) -> Any:
    """Return the job; what is passed takes the place of what its configuration says."""
    return env.TrainingEnv(resource_config, input_data_config, hyperparameters)

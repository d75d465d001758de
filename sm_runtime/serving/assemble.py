"""Puts together what a worker serves: TensorFlow's models, the user's handlers, or both."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from sm_runtime.job.errors import ModelError
from sm_runtime.serving import code as own_code
from sm_runtime.serving import layout as layout_of
from sm_runtime.serving import settings as settings_of
from sm_runtime.serving.code import OwnCode
from sm_runtime.serving.predictor import Predictor
from sm_runtime.serving.settings import Settings
from sm_runtime.serving.worker import Worker

log = logging.getLogger(__name__)


def assemble(connection: socket.socket, start: Mapping[str, Any]) -> Worker:
    """Return a worker that is warm.

    ``start`` is what the front tells: ``folder`` of the model, ``code`` (OwnCode's fields or None),
    ``rest_port``, ``cpus`` of the host and ``workers`` that share them. Raises JobError.
    """
    settings = settings_of.read(os.environ, start["cpus"])
    code = OwnCode(**start["code"]) if start["code"] else None
    for folder in reversed((*_python_path(), *(code.search_path if code else ()))):
        sys.path.insert(0, folder)
    worker = Worker(connection, settings, start["cpus"])
    layout = layout_of.find(start["folder"], settings.default_model or "")
    registry = None
    if layout.models and not (code and own_code.loads(code)):
        registry = _registry(layout, settings, start)
        worker.predictor = Predictor(registry, default_accept=settings.default_accept)
    if code and code.program:
        worker.handle_with(_handlers(code, worker, registry, settings, start))
    elif registry is None:
        raise ModelError(layout.nothing())
    return worker


def _registry(layout: Any, settings: Settings, start: Mapping[str, Any]) -> Any:
    from sm_runtime.serving import tensorflow_models

    workers = start["workers"]
    tensorflow_models.configure(
        workers=workers,
        intra_op=settings.intra_op,
        inter_op=settings.inter_op,
        gpu_fraction=(1 - settings.gpu_margin) / workers if workers > 1 else 0.0,
    )
    registry = tensorflow_models.TensorFlowModels(layout)
    registry.load()
    return registry


def _handlers(
    code: OwnCode, worker: Worker, registry: Any, settings: Settings, start: Mapping[str, Any]
) -> Any:
    from sm_runtime.serving import grpc_api, handlers
    from sm_runtime.serving.context import Surroundings

    grpc = None
    if registry is not None and grpc_api.available():
        grpc = grpc_api.GrpcApi(registry, settings.grpc_port)
    around = Surroundings(
        model_dir=start["folder"],
        model_name=registry.default_name if registry else "model",
        rest_port=start["rest_port"],
        default_accept=settings.default_accept,
        timeout=settings.timeout,
        grpc=grpc,
    )
    return handlers.load(code, around, worker.ask if registry else None)


def _python_path() -> tuple[str, ...]:
    """Return the folders of PYTHONPATH, which this interpreter was started without."""
    return tuple(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))

"""A worker process: it loads what is served, then answers the requests that the front hands on.

What it serves is TensorFlow's models, the user's handlers, or both. The main thread reads requests;
threads answer them.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from sm_runtime.contract import environment
from sm_runtime.job.errors import JobError, ModelError
from sm_runtime.job.secrets import Mask
from sm_runtime.processes.relay import Sink, log_to
from sm_runtime.serving import code as own_code
from sm_runtime.serving import frames, handlers
from sm_runtime.serving import layout as layout_of
from sm_runtime.serving import settings as settings_of
from sm_runtime.serving.code import OwnCode
from sm_runtime.serving.lanes import Lanes
from sm_runtime.serving.predictor import Predictor
from sm_runtime.serving.settings import Settings

log = logging.getLogger(__name__)

GARBAGE = 20_000
"""New containers before a collection. An image in JSON is more than Python's 700, which cost as
much as reading it."""
END_SECONDS = 2.0
"""How long a worker may take to end by itself when its front is gone."""


def main(fd: int, environ: Mapping[str, str]) -> None:
    """Serve on the socket ``fd`` until its other end is closed."""
    connection = socket.socket(fileno=fd)
    connection.set_inheritable(False)
    faulthandler.register(signal.SIGUSR1)
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    mask = Mask()
    mask.learn(environment.secrets(None, environ))
    log_to(Sink(2), mask)
    lanes: list[Lanes] = []

    def take(header: dict[str, Any], body: bytes) -> None:
        if lanes:
            lanes[0].take(header, body)
        else:
            lanes.append(_start(connection, header["start"], environ))
            gc.collect()
            gc.freeze()  # what is there stays: to look through TensorFlow's objects takes 0.1 s
            if not header["start"]["code"]:  # own code may leave more behind
                gc.set_threshold(GARBAGE)
            lanes[0].send({"ready": True})

    frames.read_all(connection, take)
    sys.exit(0)


def _end_with(connection: socket.socket) -> None:
    """End this process soon after the front, whatever the user's code is doing."""
    poller = select.poll()
    poller.register(connection, select.POLLRDHUP)
    poller.poll()
    time.sleep(END_SECONDS)
    os._exit(1)


def _start(
    connection: socket.socket, start: Mapping[str, Any], environ: Mapping[str, str]
) -> Lanes:
    """Load what is served, and say that it is ready; or say why it cannot be, and end."""
    try:
        return assemble(connection, start, environ)
    except JobError as error:
        reason = str(error)
    except BaseException as error:
        log.exception("the model cannot be served")
        reason = f"{type(error).__name__}: {error}"
    frames.send(connection, {"failed": reason}, b"")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)


def assemble(
    connection: socket.socket, start: Mapping[str, Any], environ: Mapping[str, str]
) -> Lanes:
    """Return what answers requests, warm.

    ``start`` is what the front tells: ``folder`` of the model, ``code`` (OwnCode's fields or None),
    ``rest_port``, ``cpus`` of the host and ``workers`` that share them. Raises JobError.
    """
    settings = settings_of.read(environ, start["cpus"])
    code = OwnCode(**start["code"]) if start["code"] else None
    for folder in reversed((*_python_path(environ), *(code.search_path if code else ()))):
        sys.path.insert(0, folder)
    if code and code.program:
        handlers.check_imports(code)
    lanes = Lanes(connection, settings, start["cpus"])
    layout = layout_of.find(start["folder"], settings.default_model or "")
    registry = None
    if layout.models and not (code and own_code.loads(code)):
        registry = _registry(layout, settings, start)
        lanes.predictor = Predictor(
            registry, default_accept=settings.default_accept, alias=start["name"]
        )
    if code and code.program:
        lanes.handle_with(_handlers(code, lanes, registry, settings, start))
    elif registry is None:
        raise ModelError(layout.nothing())
    return lanes


def _registry(layout: Any, settings: Settings, start: Mapping[str, Any]) -> Any:
    from sm_runtime.serving import tensorflow_models

    workers = start["workers"]
    tensorflow_models.configure(
        workers=workers,
        intra_op=settings.intra_op,
        inter_op=settings.inter_op,
        gpu_fraction=(1 - settings.gpu_margin) / workers if workers > 1 else 0.0,
    )
    registry = tensorflow_models.Models(layout)
    registry.alias = start["name"]
    registry.warm_up()
    return registry


def _handlers(
    code: OwnCode, lanes: Lanes, registry: Any, settings: Settings, start: Mapping[str, Any]
) -> Any:
    from sm_runtime.serving import grpc_api
    from sm_runtime.serving.context import Surroundings

    grpc = None
    if registry is not None and grpc_api.available():
        grpc = grpc_api.GrpcApi(registry, settings.grpc_port)
    around = Surroundings(
        model_dir=start["folder"],
        model_name=start["name"] or (registry.default_name if registry else "model"),
        model_version=str(registry.get().version) if registry else "",
        rest_port=start["rest_port"],
        default_accept=settings.default_accept,
        timeout=settings.timeout,
        grpc=grpc,
    )
    return handlers.load(code, around, lanes.ask if registry else None)


def _python_path(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the folders of PYTHONPATH, which this interpreter was started without."""
    return tuple(filter(None, environ.get("PYTHONPATH", "").split(os.pathsep)))

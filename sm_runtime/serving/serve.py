"""The command ``serve``: from the environment to a server that answers, and to its end.

What makes a model unusable is found first, in milliseconds, before pip and TensorFlow. Whatever
ends the server, its cause is the last line of the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sm_runtime.job.errors import ConfigError, JobError
from sm_runtime.job.text import human_duration
from sm_runtime.processes import hardware
from sm_runtime.processes.stop import STOPPING
from sm_runtime.serving import settings as settings_of
from sm_runtime.serving.settings import Settings

if TYPE_CHECKING:
    from sm_runtime.serving.wsgi import Module

log = logging.getLogger(__name__)

BACKLOG = 2048
POLL_SECONDS = 0.02
LINGER_SECONDS = 0.5
"""How long, after the last answer, clients with open connections may still ask."""


def serve(environ: Mapping[str, str]) -> int:
    """Serve until a request to stop; return the exit status."""
    try:
        cpus = hardware.cpus()
        settings = settings_of.read(environ, cpus)
        for warning in settings.warnings:
            log.warning("%s", warning)
        if settings.module:
            from sm_runtime.serving import wsgi

            return wsgi.serve_module(_module(settings, settings.module), environ)
        _check_packages()
        return asyncio.run(_serve(settings, environ, cpus))
    except JobError as error:
        log.error("%s", error)
        return error.status


def _module(settings: Settings, target: str) -> Module:
    from sm_runtime.serving.wsgi import Module

    given = settings.submit_directory
    code = os.path.join(settings.paths.model, "code")
    return Module(
        target=target,
        folders=(*([given] if given and os.path.isdir(given) else []), settings.paths.code, code),
        port=settings.port,
        workers=settings.workers,
        threads=settings.threads,
        timeout=settings.timeout,
        drain_seconds=settings.drain_seconds,
    )


def _check_packages() -> None:
    from importlib.util import find_spec

    needed = ("uvicorn", "httptools", "orjson", "prometheus_client")
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise ConfigError(f"serve needs {', '.join(missing)}: pip install 'sm-runtime[serve]'")


def _listen(port: int, *, fallback: bool = False) -> socket.socket:
    """Return a socket that takes connections on all addresses, IPv6 too where there is any.

    ``fallback``: where the port is taken, any port of the loopback address.
    """
    try:
        with contextlib.suppress(OSError):
            return _without_delay(
                socket.create_server(
                    ("::", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True
                )
            )
        return _without_delay(socket.create_server(("", port), backlog=BACKLOG))
    except OSError as error:
        if fallback:
            return _without_delay(socket.create_server(("127.0.0.1", 0), backlog=BACKLOG))
        raise ConfigError(
            f"port {port} (SAGEMAKER_BIND_TO_PORT) cannot be listened on:"
            f" {os.strerror(error.errno or 0)}"
        ) from error


def _without_delay(listener: socket.socket) -> socket.socket:
    """Have connections send small parts at once; asyncio does so only for sockets it has made."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def _serve(settings: Settings, environ: Mapping[str, str], cpus: int) -> int:
    from sm_runtime.serving.asgi import Server
    from sm_runtime.serving.backend import Served
    from sm_runtime.serving.front import Front
    from sm_runtime.serving.metrics import Metrics

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOPPING:
        loop.add_signal_handler(number, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    main, rest = _listen(settings.port), _listen(settings.rest_port, fallback=True)
    front = Front(settings, Metrics())
    server = Server(front, [main, rest])
    listening = loop.create_task(server.run_until_closed())
    log.info("port %d is open; the model is being loaded", settings.port)
    started = loop.time()
    served = Served(settings, environ, cpus)
    making = loop.create_task(served.start(rest.getsockname()[1]))
    stopping = loop.create_task(stop.wait())
    try:
        await asyncio.wait((making, stopping), return_when=asyncio.FIRST_COMPLETED)
        if making.done():
            making.result()
            front.backend = served
            front.metrics.follow(lambda: served.pools)
            log.info("ready after %s", human_duration(loop.time() - started))
            await stopping
            await _drain(server, front, settings.drain_seconds)
        return 0
    finally:
        making.cancel()
        await served.stop(now=not server.is_idle)
        server.force_exit = True  # clients that neither send nor read are not waited for
        server.should_exit = True
        await listening


async def _drain(server: Any, front: Any, seconds: float) -> None:
    """Take no new connection, and answer what is under way."""
    log.info("stopping: requests under way have %g s", seconds)
    front.draining = True
    await server.close_listeners()
    loop = asyncio.get_running_loop()
    end, quiet = loop.time() + seconds, loop.time()
    while loop.time() < end and loop.time() - quiet < LINGER_SECONDS:
        if not server.is_idle:
            quiet = loop.time()
        if not server.server_state.connections and server.is_idle:
            break
        await asyncio.sleep(POLL_SECONDS)
    if left := len(server.server_state.tasks):
        log.error("%d requests were not answered in %g s", left, seconds)
    else:
        log.info("stopped: all requests are answered")

"""Serves ``SAGEMAKER_SERVING_MODULE=module:application``: the user's own server, not ours.

A WSGI application is run by gunicorn, which hands every path to it unchanged. A function without
parameters, as AWS's PyTorch images name one, is a program that serves by itself.
"""

from __future__ import annotations

import ast
import importlib.machinery
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec

from sm_runtime import programs
from sm_runtime.job import diagnosis
from sm_runtime.job.errors import CodeError, ConfigError
from sm_runtime.job.text import Tail, lines

log = logging.getLogger(__name__)

_TAIL_BYTES = 1 << 16
_BACKLOG = 2048
_KILL_SECONDS = 2.0
"""From the end of the grace that gunicorn itself knows to SIGKILL."""
_LOOK_SECONDS = 0.1
_LINGER_SECONDS = 0.2
"""How long, after gunicorn's end, those are answered who were connecting."""
_REFUSAL_SECONDS = 1.0
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    b"Content-Length: 35\r\nConnection: close\r\n\r\n"
    b'{"error": "the server is stopping"}'
)
_LOGGED = re.compile(r"^\[[^]]*\] \[\d+\] \[(?:(?:ERROR|CRITICAL)\] (.*)|\w+\])")
"""A line of gunicorn's log, and what it says if it is an error."""
_TOO_GENERAL = ("Worker (pid", "Exception in worker process", "Reason: ", "Shutting down: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """What is to be served, and how."""

    target: str
    """``module:application``."""
    folders: Sequence[str] = ()
    """Where the module is looked for first; the first of them that exists is its cwd."""
    port: int = 8080
    workers: int = 1
    threads: int = 1
    timeout: float = 60.0
    """Seconds without a sign of life after which gunicorn replaces a worker."""
    drain_seconds: float = 9.0
    """How long requests under way may take after a request to stop."""


def serve_module(module: Module, environ: Mapping[str, str]) -> int:
    """Serve until the server ends or SIGTERM comes; return the exit status, 0 after SIGTERM.

    To be called by the main thread. The reason of an end that was not asked for is logged last.
    Raises ConfigError for a wrong ``target``, CodeError where there is no such module.
    """
    name, mark, attribute = module.target.partition(":")
    if not all(part.isidentifier() for part in name.split(".")) or (mark and not attribute):
        raise ConfigError(
            f"SAGEMAKER_SERVING_MODULE: {module.target!r} must be module:application, such as"
            " serve:app"
        )
    attribute = attribute or "application"  # as gunicorn has it
    folders = [folder for folder in module.folders if os.path.isdir(folder)]
    path = [*folders, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    env = {**environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)), "PYTHONUNBUFFERED": "1"}
    listener = None
    if _is_program(name, attribute, path):
        log.info("%s takes no arguments: it is called as a program", module.target)
        call = f"import sys; from {name} import {attribute} as _f; sys.exit(_f())"
        argv: tuple[str, ...] = (sys.executable, "-c", call)
    else:
        listener = _listener(module.port)
        argv = _gunicorn(module, listener.fileno())
    cwd = folders[0] if folders else "/"
    status, tail = _Child(argv, env, cwd, module.drain_seconds, listener).run()
    if status:
        log.error("%s", _reason(module.target, status, tail))
    return status


def _listener(port: int) -> socket.socket:
    """Return the socket for clients: it is ours, so that a stop can leave none of them alone."""
    try:
        return socket.create_server(("", port), backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"port {port} (SAGEMAKER_BIND_TO_PORT) cannot be listened on: {error.strerror}"
        ) from error


def _gunicorn(module: Module, descriptor: int) -> tuple[str, ...]:
    if find_spec("gunicorn") is None:
        raise ConfigError(
            "SAGEMAKER_SERVING_MODULE is set, and gunicorn, which serves it, is not installed: add"
            " it to the image (pip install sm-runtime[serve])"
        )
    # With threads, a worker lives on while a request takes long, and answers what it has taken
    # before it ends; the application is imported by each worker, after the fork.
    options = {
        "--bind": f"fd://{descriptor}",
        "--workers": str(module.workers),
        "--worker-class": "gthread",
        "--threads": str(module.threads),
        "--timeout": str(max(1, round(module.timeout))),
        "--graceful-timeout": str(max(1, round(module.drain_seconds))),
        "--backlog": str(_BACKLOG),
        "--worker-tmp-dir": "/dev/shm" if os.access("/dev/shm", os.W_OK) else "",
    }
    words = [word for pair in options.items() if pair[1] for word in pair]
    return (*programs.start(sys.executable, "gunicorn"), *words, "--", module.target)


class _Child:
    """The server's process: its output goes on to ours, a request to stop is passed on to it."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        drain_seconds: float,
        listener: socket.socket | None = None,
    ) -> None:
        self._argv, self._env, self._cwd = argv, env, cwd
        self._listener = listener
        self._ended = threading.Event()
        self._refusing = threading.Thread(target=self._refuse, name="refuse", daemon=True)
        self._patience = drain_seconds + _KILL_SECONDS
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._killer: threading.Timer | None = None
        self._tail = Tail(_TAIL_BYTES)

    def run(self) -> tuple[int, bytes]:
        """Return the shell status, 0 after a stop in time, and the end of the output."""
        with self._signals():
            try:
                self._process = process = subprocess.Popen(
                    self._argv,
                    env=self._env,
                    cwd=self._cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(self._listener.fileno(),) if self._listener else (),
                )
            except OSError as error:
                raise CodeError(f"{self._argv[0]} cannot be started: {error}") from error
            if self._stopping:  # it came before there was anything to stop
                self._stop()
            relay = threading.Thread(target=self._relay, name="relay", daemon=True)
            relay.start()
            status = process.wait()
            relay.join(1)  # a process that it left behind may hold the pipe
            self._ended.set()
            if self._refusing.is_alive():
                self._refusing.join()
            if self._listener is not None:
                self._listener.close()
        if self._stopping and status in (-signal.SIGTERM, -signal.SIGINT):
            status = 0
        return (status if status >= 0 else 128 - status), self._tail.read()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        wanted = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, lambda *_: self._stop()) for number in wanted}
        # The child inherits what is blocked.
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        self._stopping = True
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        if self._killer is None:
            self._killer = threading.Timer(self._patience, self._process.kill)
            self._killer.daemon = True
            self._killer.start()
            self._refusing.start()

    def _refuse(self) -> None:
        """Answer those who connect after a stop: gunicorn leaves them waiting, then resets them."""
        if self._listener is None:
            return
        answers: list[threading.Thread] = []
        last = 0.0
        with self._listener as listener:
            listener.settimeout(_LOOK_SECONDS)
            while not last or time.monotonic() < last:
                if self._ended.is_set() and not last:
                    last = time.monotonic() + _LINGER_SECONDS
                with suppress(TimeoutError):
                    client, _ = listener.accept()
                    answers.append(threading.Thread(target=_refuse, args=(client,), daemon=True))
                    answers[-1].start()
        for thread in answers:
            thread.join(_REFUSAL_SECONDS)

    def _relay(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        with self._process.stdout as stream:
            while data := stream.read1(1 << 16):  # type: ignore[attr-defined]
                self._tail.add(data)
                sys.stderr.buffer.write(data)
                sys.stderr.buffer.flush()


def _refuse(client: socket.socket) -> None:
    with client, suppress(OSError):
        client.settimeout(_REFUSAL_SECONDS)
        client.recv(1 << 16)
        client.sendall(_REFUSAL)
        client.shutdown(socket.SHUT_WR)
        # With bytes unread, the client would get a reset in place of the answer.
        deadline = time.monotonic() + _REFUSAL_SECONDS
        while client.recv(1 << 16) and time.monotonic() < deadline:
            pass


def _reason(target: str, status: int, tail: bytes) -> str:
    """Return one sentence on why a server ended with ``status``."""
    text = lines(tail.decode("utf-8", "replace"))
    said = f"SAGEMAKER_SERVING_MODULE={target} ended with status {status}"
    found = diagnosis.raised(text)
    if found is not None:
        where = f" ({found.frames[-1][0]}:{found.frames[-1][1]})" if found.frames else ""
        message = f": {found.message}" if found.message else ""
        return f"{said}: {found.name}{message}{where}"
    plain = [line.strip() for line in text if line.strip() and not _LOGGED.match(line)]
    logged = [match[1] for line in text if (match := _LOGGED.match(line)) and match[1]]
    last = [line for line in (*logged, *plain) if not line.startswith(_TOO_GENERAL)][-1:]
    return f"{said}: {last[0]}" if last else said


def _is_program(module: str, attribute: str, folders: Sequence[str]) -> bool:
    """Whether a module's attribute is a function that can be called without arguments.

    Told from its source, as an import may take long, or start what must not be forked; what the
    source does not tell is a WSGI application. Raises CodeError where there is no such module.
    """
    for _ in range(10):  # an import leads on to the next module
        source = _source(module, [*folders, *sys.path], folders)
        if source is None:
            return False
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return False  # gunicorn will say what is wrong with it
        bound = next(
            (found for node in reversed(tree.body) if (found := _binds(node, attribute))), None
        )
        if isinstance(bound, ast.FunctionDef):
            return _needs_nothing(bound.args)
        if not isinstance(bound, ast.ImportFrom) or bound.level or not bound.module:
            return False
        alias = next(a for a in bound.names if (a.asname or a.name) == attribute)
        module, attribute = bound.module, alias.name
    return False


def _binds(node: ast.stmt, name: str) -> ast.stmt | None:
    """Return a statement if it gives ``name`` a value."""
    if isinstance(node, ast.FunctionDef) and node.name == name:
        return node
    if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
        return node
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.ClassDef):
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        for target in targets:
            target = target.target if isinstance(target, ast.AnnAssign) else target
            if name in (getattr(target, "id", None), getattr(target, "name", None)):
                return node
    return None


def _needs_nothing(arguments: ast.arguments) -> bool:
    positional = len(arguments.posonlyargs) + len(arguments.args)
    missing = [default for default in arguments.kw_defaults if default is None]
    return positional <= len(arguments.defaults) and not missing


def _source(module: str, path: Sequence[str], folders: Sequence[str]) -> bytes | None:
    """Return the source of a module without importing anything; None: it has none.

    Raises CodeError where there is no such module.
    """
    name, searched = "", list(path)
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = importlib.machinery.PathFinder.find_spec(name, searched)
        if spec is None:
            raise CodeError(
                f"SAGEMAKER_SERVING_MODULE: there is no module {module} in"
                f" {' or '.join((*folders, 'the installed packages'))}"
            )
        searched = list(spec.submodule_search_locations or ())
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    try:
        with open(spec.origin, "rb") as file:
            return file.read()
    except OSError:
        return None

"""What the environment says of serving, read once; variables as SageMaker's images have them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from sm_runtime.contract.reader import Field, Findings
from sm_runtime.job.errors import ConfigError
from sm_runtime.job.model import Paths

_MIB = 2**20
REAL_TIME_BYTES = 6_291_456
"""How long a body may be unless a variable says more: SageMaker's own limit."""
_WITHOUT_MEANING = (
    "SAGEMAKER_TFS_WAIT_TIME_SECONDS",
    "SAGEMAKER_TFS_BATCH_TIMEOUT_MICROS",
    "SAGEMAKER_GUNICORN_WORKER_CLASS",
    "SAGEMAKER_GUNICORN_LOGLEVEL",
    "SAGEMAKER_TFS_NGINX_LOGLEVEL",
    "SAGEMAKER_DISABLE_NGINX",
)
"""Variables of AWS's images for what is not here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How requests are put together for one call of a model."""

    max_rows: int = 8
    threads: int = 1
    max_waiting: int = 0
    """How many full batches of requests may wait; 503 beyond. 0: any number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is served."""

    paths: Paths = field(default_factory=Paths)
    port: int = 8080
    rest_port: int = 8501
    grpc_port: int = 9000
    workers: int = 1
    """Processes that hold the model; of several models, for each."""
    threads: int = 1
    """How many requests a worker's own code (``inference.py``) is given at a time."""
    max_body: int | None = REAL_TIME_BYTES
    """Bytes of a request's body; None: no limit."""
    timeout: float = 60.0
    """Seconds for an answer, from the last byte of the request on."""
    startup_timeout: float = 600.0
    drain_seconds: float = 9.0
    """How long requests under way may take after a request to stop; Docker kills after 10."""
    batch_transform: bool = False
    max_concurrent_transforms: int = 1
    default_accept: str = "application/json"
    default_model: str | None = None
    multi_model: bool = False
    evict_models: bool = False
    batching: Batching | None = None
    inter_op: int = 0
    intra_op: int = 0
    gpu_margin: float = 0.2
    program: str | None = None
    """The file of the user's own code, ``inference.py`` unless given."""
    submit_directory: str | None = None
    module: str | None = None
    """``module:application`` that serves in place of all this."""
    access_log: bool = False
    warnings: tuple[str, ...] = ()


def read(environ: Mapping[str, str], cpus: int = 1) -> Settings:
    """Return the settings that ``environ`` describes, on a host with so many CPUs.

    Raises ConfigError with a sentence for each value that cannot be followed.
    """
    read = _Reader(environ)
    base = environ.get("SAGEMAKER_BASE_DIR") or Paths().base
    batch = read.flag("SAGEMAKER_BATCH")
    grpc, rest = read.safe_ports("SAGEMAKER_SAFE_PORT_RANGE") or (9000, 8501)
    payload = read.integer("SAGEMAKER_MAX_PAYLOAD_IN_MB", None, minimum=0)
    workers = read.integer("SAGEMAKER_TFS_INSTANCE_COUNT", 1)
    workers = read.integer("SAGEMAKER_GUNICORN_WORKERS", workers)
    settings = Settings(
        paths=Paths(os.path.abspath(base)),
        port=read.integer("SAGEMAKER_BIND_TO_PORT", 8080, maximum=65535),
        rest_port=rest,
        grpc_port=grpc,
        workers=read.integer("SAGEMAKER_MODEL_SERVER_WORKERS", workers),
        threads=read.integer("SAGEMAKER_GUNICORN_THREADS", 1),
        max_body=_max_body(payload),
        timeout=read.timeout(600.0 if batch else 60.0),
        startup_timeout=read.seconds("SAGEMAKER_STARTUP_TIMEOUT", 600.0),
        drain_seconds=read.seconds("SM_RUNTIME_DRAIN_SECONDS", 9.0),
        batch_transform=batch,
        max_concurrent_transforms=read.integer("SAGEMAKER_MAX_CONCURRENT_TRANSFORMS", 1),
        default_accept=environ.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT") or "application/json",
        default_model=environ.get("SAGEMAKER_TFS_DEFAULT_MODEL_NAME") or None,
        multi_model=read.flag("SAGEMAKER_MULTI_MODEL"),
        evict_models=read.flag("SM_RUNTIME_EVICT_MODELS"),
        batching=read.batching(cpus, batch),
        inter_op=read.integer("SAGEMAKER_TFS_INTER_OP_PARALLELISM", 0, minimum=0),
        intra_op=read.integer("SAGEMAKER_TFS_INTRA_OP_PARALLELISM", 0, minimum=0),
        gpu_margin=read.share("SAGEMAKER_TFS_FRACTIONAL_GPU_MEM_MARGIN", 0.2),
        program=environ.get("SAGEMAKER_PROGRAM") or None,
        submit_directory=environ.get("SAGEMAKER_SUBMIT_DIRECTORY") or None,
        module=environ.get("SAGEMAKER_SERVING_MODULE") or None,
        access_log=read.flag("SM_RUNTIME_ACCESS_LOG"),
        warnings=tuple(
            f"environment: {name} has no meaning here (see docs/serving.md)"
            for name in _WITHOUT_MEANING
            if environ.get(name)
        ),
    )
    if read.findings.problems:
        raise ConfigError(read.findings.problems)
    return settings


def _max_body(payload: int | None) -> int | None:
    if payload == 0:
        return None
    return max(REAL_TIME_BYTES, (payload or 0) * _MIB)


class _Reader:
    """Reads variables; a wrong one is a problem, and its default stands for it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.findings = Findings()

    def _at(self, name: str) -> Field | None:
        value = self._environ.get(name, "").strip()
        return Field("environment", name, value, self.findings) if value else None

    def integer(
        self, name: str, default: int | None, *, minimum: int = 1, maximum: int = 2**31
    ) -> int:
        """Return a whole number; None only where that is the default."""
        at = self._at(name)
        found = at.integer(minimum=minimum, maximum=maximum) if at else None
        return default if found is None else found  # type: ignore[return-value]

    def seconds(self, name: str, default: float) -> float:
        """Return a number of seconds, more than nothing."""
        at = self._at(name)
        found = at.seconds(0.001) if at else None
        return default if found is None else found

    def flag(self, name: str) -> bool:
        """Return whether a variable is true: ``true``, ``false``, ``1`` or ``0``, in any case."""
        at = self._at(name)
        if at is None:
            return False
        text = str(at.value).lower()
        if text not in ("true", "false", "1", "0"):
            at.must("true or false")
        return text in ("true", "1")

    def share(self, name: str, default: float) -> float:
        """Return a number from 0 up to 1."""
        at = self._at(name)
        if at is None:
            return default
        try:
            found = float(str(at.value))
        except ValueError:
            found = -1.0
        if not 0 <= found < 1:
            at.must("a number from 0 to less than 1")
        return found

    def timeout(self, default: float) -> float:
        """Return the limit for an answer: the toolkit's own, else the longest of the older ones."""
        names = ("GUNICORN_TIMEOUT_SECONDS", "NGINX_PROXY_READ_TIMEOUT_SECONDS")
        older = [self.seconds(f"SAGEMAKER_{name}", 0.0) for name in names]
        minutes = self.seconds("SAGEMAKER_MODEL_SERVER_TIMEOUT", 0.0)  # not seconds: the toolkit's
        limit = minutes * 60 or max(older) or default
        return self.seconds("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", limit)

    def safe_ports(self, name: str) -> tuple[int, int] | None:
        """Return the ports of gRPC and REST from a range ``low-high``."""
        at = self._at(name)
        if at is None:
            return None
        low, _, high = str(at.value).partition("-")
        if not (low.isdecimal() and high.isdecimal() and 0 < int(low) < int(high) < 65536):
            at.must("a range of ports like 9000-9999")
            return None
        return int(low), int(low) + 1

    def batching(self, cpus: int, batch_transform: bool) -> Batching | None:
        """Return how requests are put together, if they are."""
        prefix = "SAGEMAKER_TFS_"
        waiting = 0 if batch_transform else max(cpus, 8)
        found = Batching(
            max_rows=self.integer(prefix + "MAX_BATCH_SIZE", 8),
            threads=self.integer(prefix + "NUM_BATCH_THREADS", 1),
            max_waiting=self.integer(prefix + "MAX_ENQUEUED_BATCHES", waiting, minimum=0),
        )
        return found if self.flag(prefix + "ENABLE_BATCHING") else None

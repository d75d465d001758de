"""What the user's handlers are told of a request, and what they may say of its answer.

One object has the fields that AWS's TensorFlow image gives to ``handler(data, context)`` and the
methods of multi-model-server's context, which the functions of SageMaker's inference toolkit get.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sm_runtime.serving.media import JSON, plain_type, preferred
from sm_runtime.serving.values import ATTRIBUTES, Request, attributes

_FIELDS = (
    "model_name", "model_version", "method", "rest_uri", "grpc_port", "channel",
    "custom_attributes", "request_content_type", "accept_header", "content_length",
)  # fmt: skip


class Grpc(Protocol):
    """TensorFlow Serving's gRPC interface, started when it is first asked for."""

    @property
    def port(self) -> int:
        """The port on the loopback interface."""

    @property
    def channel(self) -> Any:
        """A channel to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is the same for all requests of a worker."""

    model_dir: str
    model_name: str = "model"
    """The model that is asked where a request names none."""
    model_version: str = ""
    """Its version, where it has one."""
    rest_port: int = 8501
    default_accept: str = JSON
    timeout: float = 60.0
    """Seconds that an answer may take."""
    grpc: Grpc | None = None


@dataclass(slots=True)
class Reply:
    """What a handler has said of the answer, beside its body."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


class Context:
    """A request as handlers see it.

    It can be unpacked, and has ``_asdict()``, as the named tuple of AWS's image. To read
    ``channel`` or ``grpc_port`` starts the gRPC interface, or raises RuntimeError without grpcio.
    """

    _fields = _FIELDS

    def __init__(self, around: Surroundings, request: Request | None = None) -> None:
        self._around = around
        self._request = request or Request()
        self._headers = self._request.headers
        self.reply = Reply()
        self.custom_attributes = self._headers.get(ATTRIBUTES)
        asked = attributes(self._headers)
        self.model_name = asked.get("tfs-model-name") or around.model_name
        self.model_version = asked.get("tfs-model-version")
        self.method = asked.get("tfs-method")
        self.signature_name = asked.get("tfs-signature-name")
        self.request_content_type = plain_type(self._headers.get("content-type") or JSON)
        self.accept_header = preferred(self._headers.get("accept", ""), around.default_accept)
        self.content_length = len(self._request.body)
        self.timeout = around.timeout
        self.manifest: Mapping[str, Any] = {}
        self.request_processor = [RequestProcessor(self._headers, self.reply)]

    @property
    def model(self) -> str:
        """The model that is asked: ``name/version``, or its name alone."""
        is_default = self.model_name == self._around.model_name
        version = self.model_version or (self._around.model_version if is_default else "")
        return f"{self.model_name}/{version}" if version else self.model_name

    @property
    def rest_path(self) -> str:
        """The path of TensorFlow Serving's REST interface for this request."""
        version = f"/versions/{self.model_version}" if self.model_version else ""
        return f"/v1/models/{self.model_name}{version}:{self.method or 'predict'}"

    @property
    def rest_uri(self) -> str:
        """The URI to which TensorFlow Serving's JSON is posted."""
        return f"http://localhost:{self._around.rest_port}{self.rest_path}"

    @property
    def grpc_port(self) -> str:
        """The port of TensorFlow Serving's gRPC interface: text, as in AWS's image."""
        return str(self._grpc().port)

    @property
    def grpc_uri(self) -> str:
        """Host and port of TensorFlow Serving's gRPC interface."""
        return f"localhost:{self._grpc().port}"

    @property
    def channel(self) -> Any:
        """A gRPC channel to the model."""
        return self._grpc().channel

    def _grpc(self) -> Grpc:
        if self._around.grpc is None:
            raise RuntimeError(
                "context.channel and context.grpc_port need a TensorFlow model and the package"
                " grpcio: add grpcio to code/requirements.txt, or use context.rest_uri"
            )
        return self._around.grpc

    @property
    def system_properties(self) -> dict[str, Any]:
        """What multi-model-server tells of itself."""
        from sm_runtime import __version__

        return {
            "model_dir": self._around.model_dir,
            "gpu_id": None,
            "batch_size": 1,
            "server_name": "sm-runtime",
            "server_version": __version__,
        }

    def get_request_id(self, idx: int = 0) -> str:
        """Return the request's ``X-Amzn-SageMaker-Inference-Id``, or nothing."""
        return self._headers.get("x-amzn-sagemaker-inference-id", "")

    def get_request_header(self, idx: int | str, key: str = "") -> str | None:
        """Return a header of the request, whatever the case of its name; None: not there."""
        return self._headers.get(_name(idx, key).lower())

    def get_all_request_header(self, idx: int = 0) -> dict[str, str]:
        """Return all headers of the request."""
        return dict(self._headers)

    def set_response_content_type(self, idx: int | str, value: str = "") -> None:
        """Set the media type of the answer."""
        self.reply.headers["content-type"] = _name(idx, value)

    def set_response_header(self, idx: int | str, key: str, value: str | None = None) -> None:
        """Set a header of the answer: ``(0, name, value)`` as the toolkit's, or ``(name, value)``.

        ``X-Amzn-SageMaker-Custom-Attributes`` among them reaches the caller of an endpoint.
        """
        name, text = (str(idx), key) if value is None else (key, value)
        _set(self.reply, name, text)

    def get_response_headers(self, idx: int = 0) -> dict[str, str]:
        """Return the headers of the answer that are set so far."""
        return dict(self.reply.headers)

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Set the HTTP status of the answer."""
        self.reply.status = int(code)

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(_FIELDS, self, strict=True))

    def __iter__(self) -> Iterator[Any]:
        return (self._field(name) for name in _FIELDS)

    def __len__(self) -> int:
        return len(_FIELDS)

    def __getitem__(self, index: int) -> Any:
        return self._field(_FIELDS[index])

    def _field(self, name: str) -> Any:
        if name in ("grpc_port", "channel") and self._around.grpc is None:
            return None  # to unpack a context is not to ask for gRPC
        return getattr(self, name)


class RequestProcessor:
    """The part of multi-model-server's context that has the headers."""

    def __init__(self, headers: Mapping[str, str], reply: Reply) -> None:
        self._headers = headers
        self._reply = reply

    def get_request_properties(self) -> dict[str, str]:
        """Return all headers, as clients write their names."""
        return {name.title(): value for name, value in self._headers.items()}

    def get_request_property(self, key: str) -> str | None:
        """Return a header, whatever the case of its name."""
        return self._headers.get(key.lower())

    def add_response_property(self, key: str, value: str) -> None:
        """Set a header of the answer."""
        _set(self._reply, key, value)

    def get_response_headers(self) -> dict[str, str]:
        """Return the headers of the answer that are set so far."""
        return dict(self._reply.headers)

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        """Set the HTTP status of the answer."""
        self._reply.status = int(code)


def _name(idx: int | str, value: str) -> str:
    return value if isinstance(idx, int) else idx


def _set(reply: Reply, name: str, value: Any) -> None:
    text = str(value)
    if any(mark in f"{name}{text}" for mark in "\r\n\0"):
        raise ValueError(f"the header {name!r} of an answer must not hold a line break or NUL")
    reply.headers[name.lower()] = text

"""TensorFlow Serving's gRPC interface for handlers that use ``context.channel``.

Only a worker that has a TensorFlow model imports this. The messages around the tensors are built
here, in a pool of their own: they are on the wire what those of tensorflow-serving-api are, which
need not be installed and is not disturbed where it is. A tensor travels as the bytes of
TensorFlow's own message.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from sm_runtime.serving.values import Model, Registry, RequestError

log = logging.getLogger(__name__)

_SERVICE = "tensorflow.serving.PredictionService"
_THREADS = 4
_UNLIMITED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
# Another worker of this model may have the port: it is not to get what is meant for this one.
_OPTIONS = (*_UNLIMITED, ("grpc.so_reuseport", 0))
_MAP = "map"
# Of each message its fields: name, number, type. A map is one from names to bytes or messages.
_MESSAGES: dict[str, tuple[tuple[str, int, str], ...]] = {
    "Int64Value": (("value", 1, "int64"),),
    "ModelSpec": (("name", 1, "string"), ("version", 2, "Int64Value"),
                  ("signature_name", 3, "string"), ("version_label", 4, "string")),
    "PredictRequest": (("model_spec", 1, "ModelSpec"), ("inputs", 2, _MAP),
                       ("output_filter", 3, "strings")),
    "PredictResponse": (("outputs", 1, _MAP), ("model_spec", 2, "ModelSpec")),
    "GetModelMetadataRequest": (("model_spec", 1, "ModelSpec"), ("metadata_field", 2, "strings")),
    "GetModelMetadataResponse": (("model_spec", 1, "ModelSpec"), ("metadata", 2, _MAP)),
    "SignatureDefMap": (("signature_def", 1, _MAP),),
}  # fmt: skip


def available() -> bool:
    """Whether grpcio is installed; it is not imported."""
    from importlib.util import find_spec

    return find_spec("grpc") is not None


class GrpcApi:
    """The server and a channel to it, both made when they are first asked for."""

    def __init__(self, registry: Registry, port: int) -> None:
        """``port`` is the wanted one; a free one is taken where it is in use."""
        self._registry = registry
        self._wanted = port
        self._lock = threading.Lock()
        self._server: Any = None
        self._channel: Any = None
        self._port = 0

    @property
    def port(self) -> int:
        """The port on the loopback interface."""
        with self._lock:
            if self._server is None:
                self._start()
            return self._port

    @property
    def channel(self) -> Any:
        """A channel of grpcio to the server, the same for all requests."""
        port = self.port
        with self._lock:
            if self._channel is None:
                grpc = import_module("grpc")
                self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=_UNLIMITED)
            return self._channel

    def close(self) -> None:
        """End the server; calls under way are cancelled."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            if self._server is not None:
                self._server.stop(None)
            self._server = self._channel = None

    def _start(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        grpc = import_module("grpc")
        server = grpc.server(ThreadPoolExecutor(_THREADS, "grpc"), options=_OPTIONS)
        service = _Service(self._registry)
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(call),
                request_deserializer=service.messages[f"{name}Request"].FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, call in (
                ("Predict", service.predict),
                ("GetModelMetadata", service.metadata),
            )
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, methods),))
        self._port = _bind(server, self._wanted) or _bind(server, 0)
        if not self._port:
            raise RuntimeError("no port on the loopback interface is free for gRPC")
        server.start()
        self._server = server
        log.info("gRPC on 127.0.0.1:%s", self._port)


def _bind(server: Any, port: int) -> int:
    """Return the port that is bound to; 0 where it is in use."""
    try:
        return int(server.add_insecure_port(f"127.0.0.1:{port}"))
    except RuntimeError:  # as newer versions say it
        return 0


def _answering(call: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a function for grpcio; what is refused becomes one of gRPC's status codes."""
    grpc = import_module("grpc")
    codes = {400: grpc.StatusCode.INVALID_ARGUMENT, 404: grpc.StatusCode.NOT_FOUND}

    def answer(request: Any, context: Any) -> Any:
        try:
            return call(request)
        except RequestError as error:
            context.abort(codes.get(error.status, grpc.StatusCode.INTERNAL), str(error))
        except Exception as error:
            log.exception("a call over gRPC failed")
            context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")

    return answer


class _Service:
    """``Predict`` and ``GetModelMetadata`` with the models of a registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.messages = _messages()

    def predict(self, request: Any) -> Any:
        tensorflow = import_module("tensorflow")
        tensor_pb2 = import_module("tensorflow.core.framework.tensor_pb2")
        model, name = self._asked(request)
        inputs = {}
        for key, data in request.inputs.items():
            try:
                inputs[key] = tensorflow.make_ndarray(tensor_pb2.TensorProto.FromString(data))
            except Exception as error:  # protobuf's own classes, TypeError, ValueError
                raise RequestError(f"input {key!r} is no tensor: {error}") from error
        _check_inputs(model, name, inputs)
        outputs = _filtered(model.run(name, inputs), request.output_filter)
        response = self.messages["PredictResponse"]()
        self._say(response, model, name)
        dtypes = model.signatures[name].outputs
        for key, value in outputs.items():
            dtype = dtypes[key].dtype if key in dtypes else None
            response.outputs[key] = tensorflow.make_tensor_proto(value, dtype).SerializeToString()
        return response

    def metadata(self, request: Any) -> Any:
        any_pb2 = import_module("google.protobuf.any_pb2")
        model, _ = self._asked(request, is_call=False)
        signatures = self.messages["SignatureDefMap"]()
        for name, signature in model.signatures.items():
            signatures.signature_def[name] = _signature_def(signature)
        wrapped = any_pb2.Any(
            type_url="type.googleapis.com/tensorflow.serving.SignatureDefMap",
            value=signatures.SerializeToString(),
        )
        response = self.messages["GetModelMetadataResponse"]()
        self._say(response, model, "")
        response.metadata["signature_def"] = wrapped.SerializeToString()
        return response

    def _asked(self, request: Any, *, is_call: bool = True) -> tuple[Model, str]:
        """Return the model and the signature that a request names."""
        spec = request.model_spec
        version = spec.version.value if spec.HasField("version") else None
        model = self._registry.get(spec.name or None, version)
        name = spec.signature_name or model.default_signature
        if is_call and name not in model.signatures:
            there = ", ".join(model.signatures)
            raise RequestError(f"model {model.name} has no signature {name!r}: it has {there}")
        return model, name

    def _say(self, response: Any, model: Model, signature: str) -> None:
        response.model_spec.name = model.name
        response.model_spec.version.value = model.version
        response.model_spec.signature_name = signature


def _check_inputs(model: Model, name: str, inputs: Mapping[str, Any]) -> None:
    specs = model.signatures[name].inputs
    wrong = [f"{key!r} is missing" for key in specs if key not in inputs]
    wrong += [f"{key!r} is none of its inputs" for key in inputs if key not in specs]
    if wrong:
        takes = ", ".join(f"{s.name} ({s.dtype} {_shape(s.shape)})" for s in specs.values())
        raise RequestError(f"signature {name}: {'; '.join(wrong)}: it takes {takes}")


def _shape(shape: tuple[int | None, ...] | None) -> str:
    return "of any shape" if shape is None else str(list(shape)).replace("None", "?")


def _filtered(outputs: Mapping[str, Any], wanted: Any) -> Mapping[str, Any]:
    missing = [name for name in wanted if name not in outputs]
    if missing:
        raise RequestError(f"output_filter: {missing[0]!r} is none of {', '.join(outputs)}")
    return {name: outputs[name] for name in wanted} if wanted else outputs


def _signature_def(signature: Any) -> bytes:
    """Return a signature as the bytes of TensorFlow's SignatureDef."""
    tensorflow = import_module("tensorflow")
    meta_graph_pb2 = import_module("tensorflow.core.protobuf.meta_graph_pb2")
    found = meta_graph_pb2.SignatureDef(method_name=f"tensorflow/serving/{signature.method}")
    for specs, infos in (
        (signature.inputs, found.inputs),
        (signature.outputs, found.outputs),
    ):
        for name, spec in specs.items():
            infos[name].name = name
            infos[name].dtype = tensorflow.as_dtype(spec.dtype).as_datatype_enum
            shape = tensorflow.TensorShape(spec.shape).as_proto()
            infos[name].tensor_shape.CopyFrom(shape)
    return bytes(found.SerializeToString())


def _messages() -> dict[str, Any]:
    """Return the classes of the messages, made in a pool that nothing else uses."""
    descriptor_pb2 = import_module("google.protobuf.descriptor_pb2")
    message_factory = import_module("google.protobuf.message_factory")
    field = descriptor_pb2.FieldDescriptorProto
    package = "sm_runtime.serving"
    file = descriptor_pb2.FileDescriptorProto(
        name="sm_runtime_serving.proto", package=package, syntax="proto3"
    )
    scalars = {"int64": field.TYPE_INT64, "string": field.TYPE_STRING, "strings": field.TYPE_STRING}
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for key, number, kind in fields:
            added = message.field.add(name=key, number=number, label=field.LABEL_OPTIONAL)
            if kind in ("strings", _MAP):
                added.label = field.LABEL_REPEATED
            if kind in scalars:
                added.type = scalars[kind]
                continue
            added.type, added.type_name = field.TYPE_MESSAGE, f".{package}.{kind}"
            if kind == _MAP:
                entry = _map_entry(message, key)
                added.type_name = f".{package}.{name}.{entry}"
    pool = import_module("google.protobuf.descriptor_pool").DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    found = {name: pool.FindMessageTypeByName(f"{package}.{name}") for name in _MESSAGES}
    if hasattr(message_factory, "GetMessageClass"):
        return {name: message_factory.GetMessageClass(kind) for name, kind in found.items()}
    factory: Any = message_factory.MessageFactory(pool)  # protobuf before 4.22
    return {name: factory.GetPrototype(kind) for name, kind in found.items()}


def _map_entry(message: Any, key: str) -> str:
    """Add the message of a map's entries, from strings to bytes; return its name."""
    name = "".join(part.title() for part in key.split("_")) + "Entry"
    entry = message.nested_type.add(name=name)
    entry.options.map_entry = True
    for index, (part, kind) in enumerate((("key", 9), ("value", 12)), 1):  # string, bytes
        entry.field.add(name=part, number=index, label=1, type=kind)
    return name

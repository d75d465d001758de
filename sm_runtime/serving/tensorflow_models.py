"""The models of a worker, by TensorFlow: loaded, warmed up and run.

Only a worker imports this; TensorFlow itself is imported by the first model that is loaded.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sm_runtime.job.errors import ModelError
from sm_runtime.processes import hardware
from sm_runtime.serving.layout import Layout, ModelFiles, Version
from sm_runtime.serving.model_files import (
    DEFAULT_SIGNATURE,
    KerasFile,
    SavedModel,
    default_signature,
)
from sm_runtime.serving.summary import axes, shown
from sm_runtime.serving.values import STRING, RequestError, Signature, TensorSpec
from sm_runtime.serving.warm_up import warm_up

log = logging.getLogger(__name__)

_PREAMBLE = ("Graph execution error", "Detected at node", "<stack traces", "Exception encountered")
_TOOL_SECONDS = 10
_CUT = re.compile(r"Read (less|fewer) bytes|checksum|corrupt|truncated", re.IGNORECASE)
"""What TensorFlow and HDF5 say of files that are damaged, under various classes of errors."""


@dataclass(frozen=True, slots=True)
class _Input:
    """An input, ready to be compared with an array."""

    spec: TensorSpec
    dtype: Any
    """TensorFlow's."""
    numpy_dtype: Any

    def tensor(self, tf: Any, signature: str, value: Any) -> Any:
        """Return an array as a tensor; raise RequestError where it does not fit.

        TensorFlow compares tensors with nothing before it runs a signature, and a wrong rank can
        end the process (``Check failed`` in its kernels).
        """
        if value.dtype != self.numpy_dtype and not (
            self.spec.dtype == STRING and value.dtype.kind in "OSU"
        ):
            raise self._error(signature, value)
        shape, given = self.spec.shape, value.shape
        if shape is not None and given != shape:
            if len(shape) != len(given):
                raise self._error(signature, value)
            for expected, size in zip(shape, given, strict=True):
                if expected is not None and expected != size:
                    raise self._error(signature, value)
        return tf.constant(value, self.dtype)

    def _error(self, signature: str, value: Any) -> RequestError:
        dtype = STRING if value.dtype.kind in "OSU" else str(value.dtype)
        return RequestError(
            f"signature {signature!r}: input {self.spec.name!r} must be {shown(self.spec)},"
            f" not {dtype} {axes(value.shape)}"
        )


@dataclass(frozen=True, slots=True)
class _Loaded:
    signatures: Mapping[str, Signature]
    functions: Mapping[str, Callable[..., Mapping[str, Any]]]
    """Called with tensors by the names of the inputs, they return tensors by name."""
    owner: Any
    """What holds the variables: functions do not."""


class TensorFlowModel:
    """One version of a model, loaded: a ``Model`` whose ``run`` may be called by many threads."""

    def __init__(
        self,
        name: str,
        version: int,
        loaded: _Loaded,
    ) -> None:
        import tensorflow

        self.name = name
        self.version = version
        self.signatures = loaded.signatures
        self.default_signature = default_signature(loaded.signatures)
        self._loaded = loaded
        self._functions = loaded.functions
        self._tf: Any = tensorflow
        self._inputs = {
            signature.name: {
                spec.name: _input(tensorflow, spec) for spec in signature.inputs.values()
            }
            for signature in self.signatures.values()
        }

    def run(self, signature: str, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the outputs of a signature, arrays by name, for the inputs, arrays by name.

        Raises RequestError: 400 where the inputs do not fit or the model refuses them, 503 where
        memory does not suffice, 500 for what else TensorFlow fails with.
        """
        expected = self._inputs.get(signature)
        if expected is None:
            raise RequestError(
                f"model {self.name!r} has no signature {signature!r}; it has:"
                f" {', '.join(self.signatures)}"
            )
        if inputs.keys() != expected.keys():
            raise self._wrong_names(signature, inputs)
        try:
            tensors = {
                name: expected[name].tensor(self._tf, signature, value)
                for name, value in inputs.items()
            }
            outputs = self._functions[signature](**tensors)
            return {name: tensor.numpy() for name, tensor in outputs.items()}
        except RequestError:
            raise
        except Exception as error:
            raise self._failure(signature, error) from error

    def _wrong_names(self, signature: str, inputs: Mapping[str, Any]) -> RequestError:
        wanted = self.signatures[signature].inputs.values()
        return RequestError(
            f"signature {signature!r} takes"
            f" {', '.join(f'{spec.name!r} ({shown(spec)})' for spec in wanted) or 'no input'},"
            f" not {', '.join(map(repr, inputs)) or 'nothing'}"
        )

    def _failure(self, signature: str, error: Exception) -> RequestError:
        errors = self._tf.errors
        where = f"model {self.name!r}, signature {signature!r}"
        reason = first_line(error)
        if isinstance(error, errors.InvalidArgumentError | ValueError | TypeError):
            return RequestError(f"{where}: {reason}")
        if isinstance(error, errors.ResourceExhaustedError | MemoryError):
            return RequestError(f"{where}: out of memory: {reason}", 503)
        return RequestError(f"{where}: {type(error).__name__}: {reason}", 500)


def _input(tf: Any, spec: TensorSpec) -> _Input:
    import numpy

    dtype = tf.as_dtype(spec.dtype)
    return _Input(spec, dtype, numpy.dtype(dtype.as_numpy_dtype))


def first_line(error: BaseException) -> str:
    """Return the line of an error of TensorFlow's that says what is wrong."""
    message = str(getattr(error, "message", None) or error)
    for line in message.splitlines():
        line = line.partition(" [Op:")[0].rstrip()
        if line and not line.startswith(_PREAMBLE) and not line[0].isspace():
            return line
    return message.strip().partition("\n")[0] or type(error).__name__


class Models:
    """The models of a folder: a ``Registry``; versions but the highest are loaded on first use."""

    def __init__(self, layout: Layout) -> None:
        self.default_name = layout.default_name
        self.alias = ""
        """Another name of the default model: that by which one of many models is loaded."""
        self._slots = {
            name: {number: _Slot(files, version) for number, version in files.versions.items()}
            for name, files in layout.models.items()
        }

    def warm_up(self) -> None:
        """Load the highest version of each model, and warm it up; raise ModelError if one fails."""
        for slots in self._slots.values():
            slots[max(slots)].load()

    def get(self, name: str | None = None, version: int | None = None) -> TensorFlowModel:
        """Return a version of a model, the highest by default; it is loaded on first use.

        Raises RequestError: 404, naming the models and versions that there are, and 500 where the
        version cannot be loaded.
        """
        slots = self._find(name)
        number = max(slots) if version is None else version
        slot = slots.get(number)
        if slot is None:
            there = ", ".join(map(str, slots))
            raise RequestError(
                f"model {name or self.default_name!r} has no version {version}; it has: {there}",
                404,
            )
        try:
            return slot.model or slot.load()
        except ModelError as error:
            raise RequestError(
                f"version {number} of model {name or self.default_name!r} cannot be loaded:"
                f" {error}",
                500,
            ) from error

    def versions(self, name: str | None = None) -> Mapping[int, str]:
        """Return the state of each version: ``AVAILABLE``, ``START`` or ``END`` (not loaded).

        Raises RequestError (404) for an unknown model.
        """
        return {number: slot.state for number, slot in self._find(name).items()}

    def _find(self, name: str | None) -> dict[int, _Slot]:
        slots = self._slots.get(self.default_name if name in (None, self.alias) else name)
        if slots is None:
            there = "; ".join(
                f"{each} (version {', '.join(map(str, versions))})"
                for each, versions in self._slots.items()
            )
            raise RequestError(f"there is no model {name!r}; there are: {there or 'none'}", 404)
        return slots


class _Slot:
    """A version of a model, loaded or not."""

    def __init__(self, files: ModelFiles, version: Version) -> None:
        self.model: TensorFlowModel | None = None
        self.state = "END"
        self._name = files.name
        self._version = version
        self._problem = version.problem
        self._lock = threading.Lock()

    def load(self) -> TensorFlowModel:
        """Return the model, loaded once; a failure is remembered."""
        with self._lock:
            if self.model is None:
                if self._problem:
                    raise ModelError(self._problem)
                self.state = "START"
                try:
                    self.model = _load(self._name, self._version)
                    self.state = "AVAILABLE"
                except ModelError as error:
                    self._problem = str(error)
                    raise
                finally:
                    if self.model is None:
                        self.state = "END"
            return self.model


def _load(name: str, version: Version) -> TensorFlowModel:
    began = time.monotonic()
    if isinstance(version.content, SavedModel):
        loaded = _load_saved_model(version.path, version.content)
    else:
        assert version.content is not None
        loaded = _load_keras(version.path, version.content)
    model = TensorFlowModel(name, version.number, loaded)
    ready = time.monotonic()
    warm_up(model, version.path)
    log.info(
        "model %s, version %d, loaded in %.1f s and warmed up in %.1f s: %s",
        name, version.number, ready - began, time.monotonic() - ready, ", ".join(model.signatures),
    )  # fmt: skip
    return model


def _load_saved_model(path: str, content: SavedModel) -> _Loaded:
    import tensorflow as tf

    with _loading(path, content.tensorflow_version):
        loaded = tf.saved_model.load(path, tags=list(content.tags))
        functions = {name: loaded.signatures[name] for name in content.signatures}
    if functions:
        return _Loaded(content.signatures, functions, loaded)
    function = next(name for name in content.functions if callable(getattr(loaded, name)))
    specs, call = _only_concrete(path, function, getattr(loaded, function))
    return _traced(path, specs, call, None, loaded)


@contextlib.contextmanager
def _loading(path: str, saved_by: str) -> Iterator[None]:
    """Turn what TensorFlow and Keras raise into one sentence with a remedy."""
    import tensorflow as tf

    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        reason = first_line(error)
        if "Op type not registered" in reason or "Unknown layer" in str(error):
            remedy = "import the package that has it in code/inference.py"
        elif isinstance(error, tf.errors.DataLossError) or _CUT.search(reason):
            remedy = "copy or save the model again"
        elif saved_by and saved_by.split(".")[:2] != tf.__version__.split(".")[:2]:
            remedy = f"save it with TensorFlow {tf.__version__}, or serve it with {saved_by}"
        else:
            remedy = "save it again, and test that it loads in Python"
        raise ModelError(
            f"{path} cannot be loaded by TensorFlow {tf.__version__}: {reason}; {remedy}"
        ) from error


def _only_concrete(path: str, name: str, function: Any) -> tuple[list[Any], Callable[..., Any]]:
    """Return inputs and call of the one way in which a function without signature was traced."""
    import tensorflow as tf

    ways = []
    for concrete in getattr(function, "concrete_functions", ()):
        flat = tf.nest.flatten(concrete.structured_input_signature)
        # Of Keras' calls with and without `training`, the one without.
        if not any(value is True for value in flat):
            ways.append((concrete, flat))
    if len(ways) != 1:
        raise ModelError(
            f"{path} has no signatures, and its function {name!r} was traced {len(ways)} times;"
            " save the model with tf.saved_model.save(model, folder, signatures=...)"
        )
    concrete, flat = ways[0]
    structure = concrete.structured_input_signature

    def call(*tensors: Any) -> Any:
        given = iter(tensors)
        values = [next(given) if isinstance(each, tf.TensorSpec) else each for each in flat]
        positional, named = tf.nest.pack_sequence_as(structure, values)
        return concrete(*positional, **named)

    return [each for each in flat if isinstance(each, tf.TensorSpec)], call


def _load_keras(path: str, content: KerasFile) -> _Loaded:
    import tensorflow as tf

    keras = _keras(path, content)
    with _loading(path, ""):
        model = keras.models.load_model(path, compile=False)
    if not getattr(model, "inputs", None):
        raise ModelError(
            f"{path} is a model without declared inputs; save it as a SavedModel with"
            " model.export(folder)"
        )
    # Keras 3 has no `input` of a sequential model that was loaded.
    structure = getattr(model, "input", model.inputs[0])
    specs = [
        tf.TensorSpec(each.shape, each.dtype, name=name)
        for each, name in zip(tf.nest.flatten(structure), _input_names(model), strict=True)
    ]

    def call(*tensors: Any) -> Any:
        return model(tf.nest.pack_sequence_as(structure, tensors), training=False)

    with _loading(path, ""):
        return _traced(path, specs, call, getattr(model, "output_names", None), model)


def _keras(path: str, content: KerasFile) -> Any:
    """Return the Keras that can read a file; raise ModelError where it is not installed."""
    import tensorflow as tf

    major = content.keras_version.partition(".")[0]
    bundled = str(getattr(tf.keras, "__version__", "2"))
    if major == "3" and not bundled.startswith("3"):
        try:
            installed = importlib.metadata.version("keras")
        except importlib.metadata.PackageNotFoundError:
            installed = "none"
        if not installed.startswith("3"):
            raise ModelError(
                f"{path} was saved by Keras {content.keras_version}, and here is Keras {installed}"
                f" with TensorFlow {tf.__version__}; serve it with TensorFlow 2.16 or later, or"
                " save it with model.export(folder)"
            )
        import keras

        return keras
    if major == "2" and bundled.startswith("3"):
        with contextlib.suppress(ImportError):
            import tf_keras

            return tf_keras
    return tf.keras


def _input_names(model: Any) -> list[str]:
    names = getattr(model, "input_names", None) or [each.name for each in model.inputs]
    return [str(name).partition(":")[0] for name in names]


def _traced(
    path: str, specs: list[Any], call: Callable[..., Any], names: list[str] | None, owner: object
) -> _Loaded:
    """Return a signature, and its function, for a call that takes tensors in the order of specs."""
    import tensorflow as tf

    inputs = {spec.name: _spec(spec.name, spec) for spec in specs}
    if len(inputs) != len(specs) or not all(isinstance(spec, tf.TensorSpec) for spec in specs):
        raise ModelError(f"{path} has inputs without names of their own; save it with signatures")

    @tf.function(input_signature=specs, autograph=False)  # type: ignore[untyped-decorator]
    def signature(*tensors: Any) -> Any:
        return _named(tf, call(*tensors), names)

    concrete = signature.get_concrete_function()
    outputs = {name: _spec(name, each) for name, each in concrete.structured_outputs.items()}
    order = list(inputs)

    def run(**tensors: Any) -> Any:
        return concrete(*[tensors[name] for name in order])

    served = Signature(name=DEFAULT_SIGNATURE, inputs=inputs, outputs=outputs)
    return _Loaded({served.name: served}, {served.name: run}, owner)


def _named(tf: Any, result: Any, names: list[str] | None) -> dict[str, Any]:
    """Return what a function gives as tensors by name, as TensorFlow names those of signatures."""
    if isinstance(result, Mapping):
        return {str(name): tensor for name, tensor in result.items()}
    flat = tf.nest.flatten(result)
    if not names or len(names) != len(flat) or len(set(names)) != len(flat):
        names = [f"output_{index}" for index in range(len(flat))]
    return dict(zip(names, flat, strict=True))


def _spec(name: str, spec: Any) -> TensorSpec:
    shape = None if spec.shape.rank is None else tuple(spec.shape.as_list())
    return TensorSpec(name=name, dtype=spec.dtype.name, shape=shape)


def configure(
    *, workers: int = 1, intra_op: int = 0, inter_op: int = 0, gpu_fraction: float = 0.0
) -> None:
    """Set TensorFlow's threads and its share of GPUs; called before anything runs.

    ``intra_op`` and ``inter_op`` are numbers of threads, by default a worker's share of the CPUs
    that the cgroup grants; ``gpu_fraction`` is the part of each GPU's memory that this process may
    take, by default as much as it comes to need.
    """
    import tensorflow as tf

    share = max(1, hardware.cpus() // max(1, workers))
    try:
        tf.config.threading.set_intra_op_parallelism_threads(intra_op or share)
        tf.config.threading.set_inter_op_parallelism_threads(inter_op or share)
        for gpu in tf.config.list_physical_devices("GPU"):
            megabytes = int(gpu_fraction * _gpu_megabytes()) if gpu_fraction else 0
            if megabytes:
                limit = tf.config.LogicalDeviceConfiguration(memory_limit=megabytes)
                tf.config.set_logical_device_configuration(gpu, [limit])
            else:
                tf.config.experimental.set_memory_growth(gpu, True)
    except (
        RuntimeError,
        ValueError,
    ) as error:
        # Code of the user's ran something while it was imported.
        log.warning("TensorFlow's threads and memory stay as they are: %s", first_line(error))


def _gpu_megabytes() -> int:
    """Return the memory of the smallest GPU, in MiB; 0 where ``nvidia-smi`` does not tell."""
    command = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TOOL_SECONDS, check=True)
        return min(int(line) for line in done.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.warning("GPU memory is not divided, as its size is unknown: %s", error)
        return 0

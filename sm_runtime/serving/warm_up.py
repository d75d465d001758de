"""Runs a model before the first request comes, so that no request waits for what is done once."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from sm_runtime.serving.model_files import mapping, submessage, submessages, text
from sm_runtime.serving.values import STRING, Model, RequestError, Signature, TensorSpec

log = logging.getLogger(__name__)

WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"
_MAX_REQUESTS = 1000
"""As TensorFlow Serving: more requests than these say nothing more."""


def warm_up(model: Model, path: str) -> None:
    """Call each signature once, and with what ``assets.extra`` of the model has.

    A model may refuse what is made up here: failures are told at the level of debugging.
    """
    for signature in model.signatures.values():
        if all(spec.shape is not None for spec in signature.inputs.values()):
            inputs = {name: _zeros(spec) for name, spec in signature.inputs.items()}
            _try(model, signature.name, inputs)
    file = os.path.join(path, WARM_UP_FILE)
    if os.path.isfile(file):
        try:
            for signature_name, inputs in recorded(file, model):
                _try(model, signature_name, inputs)
        except Exception as error:  # a format of others: whatever is wrong with it
            log.warning("%s is not replayed: %s", file, error)


def _try(model: Model, signature: str, inputs: Mapping[str, Any]) -> None:
    try:
        model.run(signature, inputs)
    except RequestError as error:
        log.debug("warm-up: %s", error)


def _zeros(spec: TensorSpec) -> Any:
    import numpy
    import tensorflow as tf

    shape = [1 if size is None else size for size in spec.shape or ()]
    if spec.dtype == STRING:
        return numpy.full(shape, b"", object)
    return numpy.zeros(shape, tf.as_dtype(spec.dtype).as_numpy_dtype)


def recorded(path: str, model: Model) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield signature and inputs of each request that a TFRecord file of PredictionLogs holds.

    See prediction_log.proto of TensorFlow Serving. Raises ValueError or an error of
    ``sm_runtime.records`` where the file is damaged.
    """
    from sm_runtime.records import tfrecord

    with open(path, "rb", buffering=0) as file:
        for count, record in enumerate(tfrecord(file)):
            if count == _MAX_REQUESTS:
                return
            entry = memoryview(record)
            for kind, read in ((6, _predict_inputs), (2, _example_inputs), (3, _example_inputs)):
                for logged in submessages(entry, kind):
                    request = submessage(logged, 1)
                    name = text(submessage(request, 1), 3) or model.default_signature
                    if name in model.signatures:
                        yield name, read(request, model.signatures[name])


def _predict_inputs(request: memoryview, signature: Signature) -> dict[str, Any]:
    """Read the tensors of a PredictRequest."""
    import tensorflow as tf
    from tensorflow.core.framework.tensor_pb2 import TensorProto

    tensors = {name: TensorProto.FromString(bytes(t)) for name, t in mapping(request, 2).items()}
    return {name: tf.make_ndarray(tensor) for name, tensor in tensors.items()}


def _example_inputs(request: memoryview, signature: Signature) -> dict[str, Any]:
    """Read the examples of a ClassificationRequest or RegressionRequest, with their context."""
    import numpy

    given = submessage(request, 2)
    plain, with_context = submessage(given, 1), submessage(given, 2)
    context = bytes(submessage(with_context, 2))
    # Messages that follow one another are merged: features of the context are each example's, too.
    examples = [bytes(each) for each in submessages(plain, 1)]
    examples += [context + bytes(each) for each in submessages(with_context, 1)]
    values = numpy.empty(len(examples), object)
    values[:] = examples
    return dict.fromkeys(signature.inputs, values)

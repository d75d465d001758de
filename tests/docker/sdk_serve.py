"""Serves a model with the SageMaker Python SDK's local mode: sdk_serve.py SPECIFICATION.

Started by test_sdk_serving.py with the Python that has the SDK. The specification is a JSON object:
``root`` for the containers' folders, ``port`` for the endpoint, ``bucket`` (its server is in
AWS_ENDPOINT_URL_S3), and ``model``: the name of a class of the SDK and its arguments. An estimator
is fitted first, to its ``inputs``. Then come

* ``deployments``: for each, ``deploy`` arguments and ``requests``: the names of a serializer and a
  deserializer, the data (``{"array", "dtype"}`` is one of numpy's), what ``predict`` takes beside;
* ``transforms``: the arguments of ``transformer`` and of its ``transform``.

What is answered goes to ``answers.json`` beside the specification: for each request the answer, or
``{"error": ...}``.
"""

import json
import pathlib
import sys

import boto3
import numpy as np
from sagemaker import deserializers, estimator, model, multidatamodel, serializers
from sagemaker.local import LocalSession
from sagemaker.tensorflow import TensorFlow, TensorFlowModel

CLASSES = {
    "Estimator": estimator.Estimator,
    "Model": model.Model,
    "MultiDataModel": multidatamodel.MultiDataModel,
    "TensorFlow": TensorFlow,
    "TensorFlowModel": TensorFlowModel,
}
ROLE = "arn:aws:iam::000000000000:role/any"


def session(specification):
    found = LocalSession(boto3.Session(), default_bucket=specification.get("bucket"))
    local = {"serving_port": specification["port"], "container_root": specification["root"]}
    found.config = {"local": {**local, "local_code": not specification.get("bucket")}}
    return found


def plain(answer):
    """Return an answer as JSON can hold it."""
    if isinstance(answer, np.ndarray):
        return {"dtype": str(answer.dtype), "shape": answer.shape, "values": answer.tolist()}
    if isinstance(answer, bytes):
        return answer.decode()
    return answer


def array(data):
    if isinstance(data, dict) and "array" in data:
        return np.array(data["array"], data["dtype"])
    return data


def ask(predictor, request):
    if "serializer" in request:
        predictor.serializer = getattr(serializers, request["serializer"])()
    if "deserializer" in request:
        predictor.deserializer = getattr(deserializers, request["deserializer"])()
    try:
        return plain(predictor.predict(array(request["data"]), **request.get("arguments", {})))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main():
    path = pathlib.Path(sys.argv[1])
    specification = json.loads(path.read_text(encoding="utf-8"))
    sagemaker_session = session(specification)
    kind, arguments, inputs = specification["model"]
    served = CLASSES[kind](role=ROLE, sagemaker_session=sagemaker_session, **arguments)
    if inputs:
        served.fit(inputs, job_name="sdk-job")
    answers = []
    for deployment in specification.get("deployments", ()):
        predictor = served.deploy(1, "local", **deployment["arguments"])
        if predictor is None:  # a model of no framework
            from sagemaker.predictor import Predictor

            predictor = Predictor(served.endpoint_name, sagemaker_session)
        try:
            answers.append([ask(predictor, request) for request in deployment["requests"]])
        finally:
            predictor.delete_endpoint()
    for maker, arguments in specification.get("transforms", ()):
        transformer = served.transformer(1, "local", **maker)
        transformer.transform(**arguments, wait=True, logs=False)
    path.with_name("answers.json").write_text(json.dumps(answers), encoding="utf-8")


main()

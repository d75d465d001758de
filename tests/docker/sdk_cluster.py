"""Runs a job on two hosts with the SageMaker SDK's local mode: sdk_cluster.py SPECIFICATION.

Started by test_cluster_sdk.py with the Python that has the SDK. The specification is a JSON object:
the estimator's own arguments, and ``root`` for the containers' folders. ``distribution`` is what
the SDK's framework estimators take. What the SDK raises goes to ``error`` beside the
specification; the exit status is then 1.
"""

import json
import pathlib
import sys

import boto3
from sagemaker.local import LocalSession
from sagemaker.tensorflow import TensorFlow

path = pathlib.Path(sys.argv[1])
specification = json.loads(path.read_text(encoding="utf-8"))
session = LocalSession(boto3.Session())
session.config = {"local": {"local_code": True, "container_root": specification.pop("root")}}
estimator = TensorFlow(
    role="arn:aws:iam::000000000000:role/any",
    instance_count=2,
    instance_type="local",
    py_version="py310",
    framework_version="2.14",
    sagemaker_session=session,
    **specification,
)
try:
    estimator.fit(job_name="sdk-job")
except RuntimeError as error:
    path.with_name("error").write_text(str(error), encoding="utf-8")
    sys.exit(1)

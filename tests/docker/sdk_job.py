"""Runs one training job with the SageMaker Python SDK's local mode: sdk_job.py SPECIFICATION.

Started by test_sdk_local_mode.py with the Python that has the SDK. The specification is a JSON
object: the estimator's own arguments, ``inputs`` for its ``fit``, ``root`` for the containers'
folders; ``s3`` with ``url`` and ``bucket`` for a job whose code goes through object storage. What
the SDK raises goes to ``error`` beside the specification; the exit status is then 1.
"""

import json
import pathlib
import sys

import boto3
from sagemaker.estimator import Estimator
from sagemaker.local import LocalSession

path = pathlib.Path(sys.argv[1])
specification = json.loads(path.read_text(encoding="utf-8"))
inputs = specification.pop("inputs")
storage = specification.pop("s3", None)
session = (
    LocalSession(boto3.Session(), s3_endpoint_url=storage["url"], default_bucket=storage["bucket"])
    if storage
    else LocalSession()
)
local = {"local_code": not storage, "container_root": specification.pop("root")}
session.config = {"local": local}
estimator = Estimator(
    role="arn:aws:iam::000000000000:role/any",
    instance_count=1,
    instance_type="local",
    sagemaker_session=session,
    **specification,
)
try:
    estimator.fit(inputs, job_name="sdk-job")
except RuntimeError as error:
    path.with_name("error").write_text(str(error), encoding="utf-8")
    sys.exit(1)

"""Runs one training job with the SageMaker Python SDK's local mode: sdk_job.py SPECIFICATION.

Started by test_sdk_local_mode.py with the Python that has the SDK. The specification is a JSON
object: the estimator's own arguments, ``inputs`` for its ``fit``, ``root`` for the containers'
folders. What the SDK raises goes to ``error`` beside the specification; the exit status is then 1.
"""

import json
import pathlib
import sys

from sagemaker.estimator import Estimator
from sagemaker.local import LocalSession

path = pathlib.Path(sys.argv[1])
specification = json.loads(path.read_text(encoding="utf-8"))
inputs = specification.pop("inputs")
session = LocalSession()
session.config = {"local": {"local_code": True, "container_root": specification.pop("root")}}
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

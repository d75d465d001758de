"""Runs one job with the SDK's ModelTrainer in local containers: sdk_trainer.py SPECIFICATION.

The specification is a JSON object: ``root``, ``image``, ``source``, ``script``, ``data``,
``hyperparameters``.
"""

import json
import pathlib
import sys

from sagemaker.modules import Session
from sagemaker.modules.configs import Compute, InputData, SourceCode
from sagemaker.modules.train.model_trainer import Mode, ModelTrainer

specification = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
trainer = ModelTrainer(
    training_image=specification["image"],
    training_mode=Mode.LOCAL_CONTAINER,
    sagemaker_session=Session(),
    role="arn:aws:iam::000000000000:role/any",
    compute=Compute(instance_type="local_cpu", instance_count=1),
    source_code=SourceCode(
        source_dir=specification["source"],
        entry_script=specification["script"],
        requirements=specification["requirements"],
    ),
    hyperparameters=specification["hyperparameters"],
    base_job_name="trainer-job",
    local_container_root=specification["root"],
)
trainer.train(
    input_data_config=[InputData(channel_name="train", data_source=specification["data"])],
    wait=True,
)

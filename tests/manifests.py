"""Requests as manifests, and whether the published schemas accept them; no cluster is needed."""

from __future__ import annotations

import json
from typing import Any

from sm_runtime.contract.reader import Document
from sm_runtime.export import manifests
from sm_runtime.export.asked import Result, of_request
from sm_runtime.export.options import Choices

SECRET = "made-for-the-hosts-of-this-job"
VERSIONS = tuple(f"1.{minor}" for minor in range(29, 38))
"""Of Kubernetes: from the first that takes `podReplacementPolicy` without being asked to, to the
last whose schemas the validator has.
"""
ENGINES = ("kubernetes", "kubeflow")
REQUEST = {
    "TrainingJobName": "Mnist.run_7",
    "AlgorithmSpecification": {"TrainingImage": "registry.example.com/sm-runtime:gpu"},
    "HyperParameters": {"sagemaker_program": "train.py", "sagemaker_mpi_enabled": "true"},
    "InputDataConfig": [
        {
            "ChannelName": "train",
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/train"}},
        }
    ],
    "OutputDataConfig": {"S3OutputPath": "s3://models"},
    "ResourceConfig": {"InstanceType": "ml.g5.12xlarge", "InstanceCount": 2},
}


def asked(engine: str, request: Any = REQUEST, **choices: Any) -> Result:
    """Return what a request asks for; a text stands for itself."""
    text = request if isinstance(request, str) else json.dumps(request, indent=1) + "\n"
    infix = "-node-0" if engine == "kubeflow" else ""
    return of_request(Document("job.json", text.encode()), Choices(**choices), infix)


def exported(engine: str, request: Any = REQUEST, **choices: Any) -> list[dict[str, Any]]:
    """Return the manifests of a request, which is right."""
    result = asked(engine, request, **choices)
    assert result.problems == ()
    assert result.asked is not None
    return getattr(manifests, engine)(result.asked, lambda: SECRET)


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


def job(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the specification of the job whose pods are the hosts."""
    if found := of_kind(documents, "Job"):
        return found[0]["spec"]
    (runtime,) = of_kind(documents, "TrainingRuntime")
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return job(documents)["template"]["spec"]


def container(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = pod(documents)["containers"]
    return found


def variables(documents: list[dict[str, Any]]) -> dict[str, str]:
    """Return the container's variables as Kubernetes would set them."""
    secrets = {
        made["metadata"]["name"]: made["stringData"] for made in of_kind(documents, "Secret")
    }
    found = {}
    for item in container(documents)["env"]:
        reference = item.get("valueFrom", {}).get("secretKeyRef")
        found[item["name"]] = (
            secrets[reference["name"]][reference["key"]] if reference else item["value"]
        )
    return found


def validate(document: dict[str, Any], version: str = VERSIONS[-1]) -> None:
    """Raise if the schemas do not accept a manifest: unknown keys, types, what is missing."""
    kind = document["kind"]
    if not document["apiVersion"].startswith("trainer.kubeflow.org/"):
        import kubernetes_validate

        kubernetes_validate.validate(document, version, strict=True)
        return
    from kubeflow_trainer_api import models

    model = getattr(models, f"TrainerV1alpha1{kind}")
    made = model.from_dict(document)  # which leaves out what it does not know
    assert made.to_dict() == document, f"{kind} has keys that Kubeflow does not know"
    if kind == "TrainingRuntime":
        # The models hold no enumeration of Kubernetes' own: the hosts' Job is a Job's, too.
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}}
        validate({**whole, "spec": job([document])})

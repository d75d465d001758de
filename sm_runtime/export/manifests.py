"""Builds the manifests, as the objects that YAML or JSON writes.

Shapes are those of Kubernetes' API reference (batch/v1 Job, v1 Service, Secret and ConfigMap) and
of Kubeflow Trainer's (trainer.kubeflow.org/v1alpha1, TrainingRuntime and TrainJob).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from sm_runtime.export.asked import Asked
from sm_runtime.job.model import Json, Paths

Manifest: TypeAlias = "dict[str, Json]"

REQUEST = "job.json"
CLUSTER_SECRET = "cluster-secret"
"""The key of a Secret by which the hosts know each other."""
GPU = "nvidia.com/gpu"
_KUBEFLOW = "trainer.kubeflow.org"


def kubernetes(asked: Asked, new_secret: Callable[[], str]) -> list[Manifest]:
    """Return an Indexed Job, and what it needs; ``new_secret`` makes a secret for its hosts.

    Hosts of a job end together: the first that fails ends the Job, and a job that may be tried
    again (``RetryStrategy``) fails as often as it has hosts each time.
    """
    spec: Manifest = {
        "completionMode": "Indexed",
        "completions": asked.hosts,
        "parallelism": asked.hosts,
        "backoffLimit": asked.hosts * asked.retries,
        "podReplacementPolicy": "Failed",
    }
    if asked.retries:
        disrupted = [{"type": "DisruptionTarget", "status": "True"}]
        spec["podFailurePolicy"] = {
            "rules": [{"action": "Ignore", "onPodConditions": disrupted}],
        }
    pod = _pod(asked, "train", {"SM_RUNTIME_NUM_HOSTS": str(asked.hosts)})
    found = _stored(asked, new_secret)
    if asked.hosts > 1:
        pod["spec"]["subdomain"] = asked.name
        found.append(_service(asked))
    spec["template"] = pod
    return [*found, _object(asked, "batch/v1", "Job", spec=spec)]


def kubeflow(asked: Asked, new_secret: Callable[[], str]) -> list[Manifest]:
    """Return a TrainJob of Kubeflow Trainer with a runtime of its own, and what they need.

    Kubeflow restarts all hosts together. Its policy ``torch`` has it say how many hosts there are.
    """
    job: Manifest = {
        "name": "node",
        "template": {
            "metadata": {"labels": {f"{_KUBEFLOW}/trainjob-ancestor-step": "trainer"}},
            "spec": {
                "backoffLimit": 0,
                "podReplacementPolicy": "Failed",
                "template": _pod(asked, "node", {}),
            },
        },
    }
    jobs: Manifest = {"replicatedJobs": [job]}
    if asked.retries:
        jobs = {"failurePolicy": {"maxRestarts": asked.retries}, **jobs}
    runtime: Manifest = {
        "mlPolicy": {"numNodes": asked.hosts, "torch": {}},
        "template": {"spec": jobs},
    }
    reference = {"apiGroup": _KUBEFLOW, "kind": "TrainingRuntime", "name": asked.name}
    train: Manifest = {"runtimeRef": reference, "trainer": {"numNodes": asked.hosts}}
    version = f"{_KUBEFLOW}/v1alpha1"
    return [
        *_stored(asked, new_secret),
        _object(asked, version, "TrainingRuntime", spec=runtime),
        _object(asked, version, "TrainJob", spec=train),
    ]


def _stored(asked: Asked, new_secret: Callable[[], str]) -> list[Manifest]:
    """Return the request, and a secret for the hosts if they are several and have none."""
    name, text = f"{asked.name}-request", {REQUEST: asked.request}
    if asked.is_secret:
        found = [_object(asked, "v1", "Secret", name, immutable=True, stringData=text)]
    else:
        found = [_object(asked, "v1", "ConfigMap", name, immutable=True, data=text)]
    if asked.hosts > 1 and not asked.choices.cluster_secret:
        made = {CLUSTER_SECRET: new_secret()}
        name = f"{asked.name}-cluster"
        found.append(_object(asked, "v1", "Secret", name, immutable=True, stringData=made))
    return found


def _service(asked: Asked) -> Manifest:
    """Return the headless service that gives names to hosts, also before they are ready."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"batch.kubernetes.io/job-name": asked.name},
    }
    return _object(asked, "v1", "Service", spec=spec)


def _pod(asked: Asked, container: str, variables: dict[str, str]) -> Manifest:
    """Return the template of a host's pod.

    There are no probes: nothing is routed to a host, and a container that is restarted alone would
    train without the others. Environment variables of services are off, as one of a service
    ``sm-runtime`` would look like an option of the runtime.
    """
    spec: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": asked.grace_seconds,
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
    }
    if asked.choices.service_account:
        spec["serviceAccountName"] = asked.choices.service_account
    if asked.gpus:
        spec["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    spec["containers"] = [_container(asked, container, variables)]
    request = {"secretName" if asked.is_secret else "name": f"{asked.name}-request"}
    spec["volumes"] = [
        {"name": "request", "secret" if asked.is_secret else "configMap": request},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        *(
            {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": name}}
            for number, name in enumerate(_claim_names(asked))
        ),
    ]
    return {"metadata": {"labels": _labels(asked)}, "spec": spec}


def _container(asked: Asked, name: str, variables: dict[str, str]) -> Manifest:
    """Return the container: its arguments are those with which platforms start an image."""
    found: Manifest = {"name": name, "image": asked.image, "args": ["train"]}
    values = {
        **variables,
        **asked.variables,
        "SM_RUNTIME_STOP_TIMEOUT_SECONDS": str(asked.grace_seconds),
    }
    if asked.hosts > 1:
        values["SM_RUNTIME_PEER_WAIT_SECONDS"] = str(asked.pending_seconds)
    env: list[Manifest] = [{"name": key, "value": value} for key, value in values.items()]
    if asked.hosts > 1:
        secret = asked.choices.cluster_secret or f"{asked.name}-cluster"
        reference = {"secretKeyRef": {"name": secret, "key": CLUSTER_SECRET}}
        env.append({"name": "SM_RUNTIME_CLUSTER_SECRET", "valueFrom": reference})
    found["env"] = env
    if asked.choices.env_secrets:
        found["envFrom"] = [{"secretRef": {"name": name}} for name in asked.choices.env_secrets]
    if limits := _limits(asked):
        found["resources"] = {"limits": limits}
    found["securityContext"] = {"allowPrivilegeEscalation": False}
    names = _claim_names(asked)
    found["volumeMounts"] = [
        {
            "name": "request",
            "mountPath": f"{Paths().config}/{REQUEST}",
            "subPath": REQUEST,
            "readOnly": True,
        },
        {"name": "shm", "mountPath": "/dev/shm"},
        *({"name": f"claim-{names.index(name)}", "mountPath": path} for name, path in asked.claims),
    ]
    return found


def _limits(asked: Asked) -> dict[str, Json]:
    """Return the limits, which are the requests, too, where these are not set."""
    found: dict[str, Json] = {"cpu": asked.choices.cpu, "memory": asked.choices.memory}
    found[GPU] = asked.gpus or ""
    return {name: value for name, value in found.items() if value}


def _claim_names(asked: Asked) -> list[str]:
    return list(dict.fromkeys(name for name, _ in asked.claims))


def _labels(asked: Asked) -> dict[str, str]:
    return {"app.kubernetes.io/name": asked.name, "app.kubernetes.io/managed-by": "sm-runtime"}


def _object(asked: Asked, version: str, kind: str, name: str = "", **more: Json) -> Manifest:
    metadata: Manifest = {"name": name or asked.name}
    if asked.choices.namespace:
        metadata["namespace"] = asked.choices.namespace
    metadata["labels"] = _labels(asked)
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **more}

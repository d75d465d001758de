"""What a request and the options of the command ask a cluster for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from sm_runtime.contract import config_files, environment, load, reader
from sm_runtime.contract.cluster import Resources, requested_resources
from sm_runtime.contract.engines import MOST_HOSTS
from sm_runtime.contract.reader import Document, Field, Findings
from sm_runtime.export.options import Choices
from sm_runtime.job import location
from sm_runtime.job.model import Job, Json, Options, Paths
from sm_runtime.launch import distribution

LONGEST_NAME = 63
"""Of a host, a label and a service (RFC 1123)."""
LARGEST_REQUEST = 1_000_000
"""A ConfigMap or a Secret holds 1 MiB at most, together with its own metadata."""
PENDING_SECONDS = 1800
"""How long hosts wait for each other: pods start as nodes become free, and pull their images."""
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_OBJECT = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
_QUANTITY = re.compile(r"([0-9]+|[0-9]+\.[0-9]+|\.[0-9]+)(m|k|[MGTPE]|[KMGTPE]i)?")
_ACCELERATED = re.compile(r"(p|g|gr|trn|inf|dl)[0-9].*|local_gpu")
_DATA = ("InputDataConfig", "OutputDataConfig", "CheckpointConfig", "TensorBoardOutputConfig")
_GPUS = {
    "p2": {"xlarge": 1, "8xlarge": 8, "16xlarge": 16},
    "p3": {"2xlarge": 1, "8xlarge": 4, "16xlarge": 8},
    "p3dn": {"24xlarge": 8},
    "p4d": {"24xlarge": 8},
    "p4de": {"24xlarge": 8},
    "p5": {"4xlarge": 1, "48xlarge": 8},
    "p5e": {"48xlarge": 8},
    "p5en": {"48xlarge": 8},
    "p6-b200": {"48xlarge": 8},
    "g4dn": {"": 1, "12xlarge": 4, "metal": 8},
    "g5": {"": 1, "12xlarge": 4, "24xlarge": 4, "48xlarge": 8},
    "g6": {"": 1, "12xlarge": 4, "24xlarge": 4, "48xlarge": 8},
    "g6e": {"": 1, "12xlarge": 4, "24xlarge": 4, "48xlarge": 8},
}
"""NVIDIA GPUs of instance types (AWS's "Amazon EC2 accelerated computing instances"), by family
and size; an empty size is any other of the family.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the manifests are made of."""

    name: str
    image: str
    hosts: int
    gpus: int
    request: str
    """The text of the request, as it was read."""
    is_secret: bool
    """Whether the request holds what must not be shown."""
    grace_seconds: int
    """From a stop request to SIGKILL."""
    pending_seconds: int
    """How long the first host waits for the last one to appear."""
    retries: int
    variables: Mapping[str, str] = field(default_factory=dict)
    """Further variables of the runtime."""
    claims: tuple[tuple[str, str], ...] = ()
    """Names of claims, and the folders where they are mounted."""
    choices: Choices = field(default_factory=Choices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What is asked for, or the sentences that say what is wrong with it."""

    asked: Asked | None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    """What the sentences must not show."""


def of_request(document: Document, choices: Choices, infix: str) -> Result:
    """Return what ``document``, a CreateTrainingJob request, and the options ask for.

    ``infix`` is what stands between the job's name and the number of a host. Problems of the
    request are the sentences of `sm-runtime check`.
    """
    findings = Findings()
    root = replace(reader.load(document, document.path, Findings()), findings=findings)
    resources = requested_resources(
        replace(root.get("ResourceConfig"), findings=Findings())  # `parse` tells of its problems
    )
    hosts = next(iter(resources.counts), 0) or 1
    if hosts > MOST_HOSTS:
        root.get("ResourceConfig").wrong(f"asks for {hosts} hosts, but {MOST_HOSTS} are the most")
        return Result(asked=None, problems=tuple(findings.problems))
    name = _name(root, choices, f"{infix}-{hosts - 1}")
    given = {} if root.get("TrainingJobName").present else {"TRAINING_JOB_NAME": name}
    parsed = _parsed(document, name or "job", hosts, given)
    asked = _asked(root, resources, parsed.draft, document, choices)
    _check(choices, findings)
    problems = [*parsed.problems, *distribution.problems(parsed.draft)]
    problems += [*environment.oversized(parsed.draft), *findings.problems]
    unmounted = (text for key in _DATA for text in _unmounted(root.get(key), asked.claims))
    return Result(
        asked=None if problems else replace(asked, name=name, hosts=hosts, variables=given),
        problems=tuple(dict.fromkeys(problems)),
        warnings=(*parsed.warnings, *unmounted),
        secrets=environment.secrets(parsed.draft, {}),
    )


def _asked(
    root: Field, resources: Resources, job: Job, document: Document, choices: Choices
) -> Asked:
    """Return what is asked for, but for name and hosts; ``job`` is what they will read."""
    return Asked(
        name="",
        image=_image(root, choices),
        hosts=0,
        gpus=_gpus(root, resources, choices),
        request=_text(root, document),
        is_secret=_has_secrets(job),
        grace_seconds=math.ceil(job.options.stop_timeout_seconds),
        pending_seconds=_pending(root, job),
        retries=root.get("RetryStrategy").get("MaximumRetryAttempts").integer(minimum=0) or 0,
        claims=_claims(choices, root.findings),
        choices=choices,
    )


def _parsed(document: Document, name: str, hosts: int, given: Mapping[str, str]) -> load.Parsed:
    """Return the job as the first host will read it."""
    names = [f"{name}-{number}" for number in range(hosts)]
    variables = {"SM_RUNTIME_HOSTS": ",".join(names), **given}
    return load.parse({"job": document}, variables, Paths(), names[0])


def _name(root: Field, choices: Choices, suffix: str) -> str:
    """Return the name of the job and its service; empty where there is none, which is a problem."""
    at, name = root.get("TrainingJobName"), choices.name
    if not name and isinstance(at.value, str):
        name = re.sub(r"[._]+", "-", at.value).strip("-").lower()
        name = name if name[:1].isalpha() else f"job-{name}"
        if not _NAME.fullmatch(name):  # then it is no name of a job either, which `parse` says
            return ""
    elif not name:
        at.wrong("is missing; --name may give one")
        return ""
    if not _NAME.fullmatch(name):
        _wrong(root, "--name", f"must be lower-case letters, digits and hyphens, not {name!r}")
        return ""
    if len(name + suffix) > LONGEST_NAME:
        _wrong(
            root,
            "--name",
            f"{name!r} must have at most {LONGEST_NAME - len(suffix)} characters, as hosts are"
            f" called {name + suffix!r}",
        )
        return ""
    return name


def _has_secrets(job: Job) -> bool:
    """Whether the request holds what looks like a secret; a reference to one does not."""

    def without_references(values: Mapping[str, Json]) -> dict[str, Json]:
        return {
            name: value for name, value in values.items() if config_files.reference(value) is None
        }

    values = without_references(job.environment), without_references(job.hyperparameters)
    return bool(
        environment.secrets(replace(job, environment=values[0], hyperparameters=values[1]), {})
    )


def _image(root: Field, choices: Choices) -> str:
    at = root.get("AlgorithmSpecification").get("TrainingImage")
    image = choices.image or at.text() or ""
    if not image and not at.spoiled:
        at.wrong("is missing; --image may name the image")
    return image


def _gpus(root: Field, resources: Resources, choices: Choices) -> int:
    """Return how many GPUs each host has: all pods of a Job are alike."""
    if choices.gpus is not None:
        return choices.gpus
    types = {group.instance_type for group in resources.groups} or {
        next(iter(resources.counts.values()), None) or resources.instance_type
    }
    found = {name: gpus_of(name or "") for name in sorted(types, key=str)}
    if None in found.values():
        name = next(name for name, gpus in found.items() if gpus is None)
        _wrong(root, "--gpus", f"has to say how many NVIDIA GPUs a host of {name!r} has")
    elif len(set(found.values())) > 1:
        said = ", ".join(f"{name!r} has {gpus}" for name, gpus in found.items())
        _wrong(root, "--gpus", f"has to say how many GPUs each host gets: {said}")
    return next(iter(found.values())) or 0


def gpus_of(instance_type: str) -> int | None:
    """Return how many NVIDIA GPUs an instance type has; None where that is not known."""
    family, _, size = instance_type.removeprefix("ml.").partition(".")
    sizes = _GPUS.get(family)
    if sizes is None:
        return None if _ACCELERATED.fullmatch(family) else 0
    return sizes.get(size, sizes.get(""))


def _pending(root: Field, job: Job) -> int:
    """Return the seconds that hosts wait for each other, as the user wants them."""
    at = root.get("StoppingCondition").get("MaxPendingTimeInSeconds")
    asked = at.integer(minimum=0) or PENDING_SECONDS
    own = job.options.peer_wait_seconds
    return asked if own == Options().peer_wait_seconds else math.ceil(own)


def _text(root: Field, document: Document) -> str:
    """Return the request's text, which has to fit into one object of the cluster."""
    text = (document.data or b"").decode("utf-8-sig", "replace")
    if len(text.encode()) > LARGEST_REQUEST:
        root.wrong(f"is longer than {LARGEST_REQUEST} bytes, the most that a ConfigMap can hold")
    return text


def _claims(choices: Choices, findings: Findings) -> tuple[tuple[str, str], ...]:
    found = []
    for text in choices.claims:
        name, _, path = text.partition(":")
        if not _OBJECT.fullmatch(name) or not path.startswith("/") or ":" in path:
            findings.problems.append(f"--claim: must be NAME:/FOLDER, not {text!r}")
        else:
            found.append((name, path.rstrip("/") or "/"))
    return tuple(found)


def _check(choices: Choices, findings: Findings) -> None:
    for option, text in (("--cpu", choices.cpu), ("--memory", choices.memory)):
        if text and not _QUANTITY.fullmatch(text):
            findings.problems.append(f"{option}: must be a quantity like 4 or 16Gi, not {text!r}")
    names = [("--namespace", choices.namespace), ("--cluster-secret", choices.cluster_secret)]
    names += [("--service-account", choices.service_account)]
    names += [("--env-secret", name) for name in choices.env_secrets]
    for option, text in names:
        if text and not _OBJECT.fullmatch(text):
            findings.problems.append(f"{option}: {text!r} cannot be the name of an object")
    if choices.gpus is not None and choices.gpus < 0:
        findings.problems.append(
            f"--gpus: must be a whole number of at least 0, not {choices.gpus}"
        )


def _wrong(root: Field, option: str, what: str) -> None:
    root.findings.problems.append(f"{option}: {what}")


def _unmounted(at: Field, claims: tuple[tuple[str, str], ...]) -> Iterator[str]:
    """Yield a sentence for each folder of the container that no claim holds."""
    if isinstance(at.value, dict | list):
        parts = at.items() if isinstance(at.value, list) else at.fields().values()
        for part in parts:
            yield from _unmounted(part, claims)
        return
    path = _folder(at)
    if path and not any(f"{path}/".startswith(f"{mounted}/") for _, mounted in claims):
        yield (
            f"{at.place}: {path} is a folder of the container, which ends with it; --claim"
            " NAME:FOLDER mounts one that stays"
        )


def _folder(at: Field) -> str:
    """Return the folder of this machine that a value names, if it does."""
    if not isinstance(at.value, str):
        return ""
    if at.key.endswith(".DirectoryPath"):
        return at.value
    try:
        return location.parse(at.value).path if location.is_file(at.value) else ""
    except ValueError:
        return ""

"""Reads a CreateTrainingJob request, the ``job.json`` of a self-managed job.

The shapes are those of the AWS API reference (CreateTrainingJob), in a table: a member is used, has
no effect here (which the log says once), or is refused by name; a key that is not the API's is a
problem. For users, docs/request.md has the same table, and a test holds both to the shape that
botocore ships. What is below a member without effect is not looked at: nothing depends on it here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from sm_runtime.contract.channels import MODES, requested_channels
from sm_runtime.contract.cluster import Resources, requested_resources
from sm_runtime.contract.reader import Field
from sm_runtime.job.dataclass import dataclass, field
from sm_runtime.job.model import Channel, Json, Metric, Output, Paths, Sync

Shape: TypeAlias = "Mapping[str, Used | Unused | Refused | Shape | list[Shape]]"


@dataclass(frozen=True, slots=True)
class Used:
    """A member that has an effect: a value, or a map of values."""


@dataclass(frozen=True, slots=True)
class Unused:
    """A member that has no effect in a container."""

    why: str
    warns: bool = False
    """Whether who sets it may rely on what does not happen, and is warned."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A member that a job cannot have."""

    why: str


_USED = Used()
_LAUNCH = Unused("for the program that starts the containers")
_STORAGE = Unused("the disk is the container's")
_SERVICE = Unused("for SageMaker's own services")
_DEBUGGER = Unused("for SageMaker Debugger, which runs on SageMaker only")
_FILE_SYSTEM = Unused("DirectoryPath is a folder of the container")
_PLATFORM = Refused("is available on SageMaker only; use S3DataSource")
_INSTANCES: Shape = {"InstanceType": _USED, "InstanceCount": _USED}

REQUEST: Shape = {
    "TrainingJobName": _USED,
    "HyperParameters": _USED,
    "AlgorithmSpecification": {
        "TrainingImage": _LAUNCH,
        "AlgorithmName": _LAUNCH,
        "TrainingInputMode": _USED,
        "MetricDefinitions": _USED,
        "EnableSageMakerMetricsTimeSeries": _SERVICE,
        "ContainerEntrypoint": _USED,
        "ContainerArguments": _USED,
        "TrainingImageConfig": _LAUNCH,
    },
    "RoleArn": Unused("the credentials are those of the container"),
    "InputDataConfig": [
        {
            "ChannelName": _USED,
            "DataSource": {
                "S3DataSource": {
                    "S3DataType": _USED,
                    "S3Uri": _USED,
                    "S3DataDistributionType": _USED,
                    "AttributeNames": _USED,
                    "InstanceGroupNames": _USED,
                    "ModelAccessConfig": _SERVICE,
                    "HubAccessConfig": Unused("S3Uri is read as it is"),
                },
                "FileSystemDataSource": {
                    "FileSystemId": _FILE_SYSTEM,
                    "FileSystemAccessMode": _USED,
                    "FileSystemType": _FILE_SYSTEM,
                    "DirectoryPath": _USED,
                },
                "DatasetSource": _PLATFORM,
            },
            "ContentType": _USED,
            "CompressionType": _USED,
            "RecordWrapperType": _USED,
            "InputMode": _USED,
            "ShuffleConfig": {"Seed": _USED},
        }
    ],
    "OutputDataConfig": {"S3OutputPath": _USED, "KmsKeyId": _USED, "CompressionType": _USED},
    "ResourceConfig": {
        **_INSTANCES,
        "VolumeSizeInGB": _STORAGE,
        "VolumeKmsKeyId": _STORAGE,
        "KeepAlivePeriodInSeconds": _LAUNCH,
        "InstanceGroups": [{**_INSTANCES, "InstanceGroupName": _USED}],
        "TrainingPlanArn": _LAUNCH,
        "InstancePlacementConfig": _LAUNCH,
        "InstancePreferences": [{**_INSTANCES, "TrainingPlanArns": _LAUNCH}],
        "SelectedInstanceType": _USED,
        "SelectedInstanceCount": _USED,
    },
    "VpcConfig": _LAUNCH,
    "StoppingCondition": {
        "MaxRuntimeInSeconds": _USED,
        "MaxWaitTimeInSeconds": _LAUNCH,
        "MaxPendingTimeInSeconds": _LAUNCH,
    },
    "Tags": _SERVICE,
    "EnableNetworkIsolation": Unused(
        "only the program that starts the container can isolate it (`docker run --network none`)",
        warns=True,
    ),
    "EnableInterContainerTrafficEncryption": Unused(
        "what scripts on different hosts send each other is not encrypted",
        warns=True,
    ),
    "EnableManagedSpotTraining": _LAUNCH,
    "CheckpointConfig": {"S3Uri": _USED, "LocalPath": _USED},
    "DebugHookConfig": _DEBUGGER,
    "DebugRuleConfigurations": _DEBUGGER,
    "TensorBoardOutputConfig": {"S3OutputPath": _USED, "LocalPath": _USED},
    "ExperimentConfig": _SERVICE,
    "ProfilerConfig": _DEBUGGER,
    "ProfilerRuleConfigurations": _DEBUGGER,
    "Environment": _USED,
    "RetryStrategy": {"MaximumRetryAttempts": _LAUNCH},
    "RemoteDebugConfig": _LAUNCH,
    "InfraCheckConfig": _LAUNCH,
    "SessionChainingConfig": _LAUNCH,
    "ServerlessJobConfig": Refused(
        "asks for a serverless job, which runs programs of SageMaker's and not this image"
    ),
    "MlflowConfig": _SERVICE,
    "ModelPackageConfig": Unused("the model is not registered with SageMaker"),
}
"""The members of a request; a list holds the members of each of its items."""


def members(shape: Shape, prefix: str = "") -> Iterator[tuple[str, Used | Unused | Refused]]:
    """Yield the path of each member that was decided on, and what became of it."""
    for name, fate in shape.items():
        inner = fate[0] if isinstance(fate, list) else fate
        if isinstance(inner, Mapping):
            yield from members(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, inner


def without_effect(request: Json, shape: Shape = REQUEST, prefix: str = "") -> dict[str, Unused]:
    """Return the members that ``request`` sets and that have no effect, by their paths."""
    found: dict[str, Unused] = {}
    for name, value in request.items() if isinstance(request, dict) else ():
        fate = shape.get(name)
        if isinstance(fate, Unused) and value:
            found[prefix + name] = fate
        elif isinstance(fate, list):
            for item in value if isinstance(value, list) else ():
                found |= without_effect(item, fate[0], f"{prefix}{name}.")
        elif isinstance(fate, Mapping):
            found |= without_effect(value, fate, f"{prefix}{name}.")
    return found


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a CreateTrainingJob request says to a container."""

    name: str | None = None
    hyperparameters: Mapping[str, Field] = field(default_factory=dict)
    channels: Mapping[str, Channel | None] = field(default_factory=dict)
    """By their names; None for one of which something is wrong."""
    resources: Resources = field(default_factory=Resources)
    output: Output | None = None
    checkpoints: Sync | None = None
    tensorboard: Sync | None = None
    metrics: tuple[Metric, ...] = ()
    entry_point: tuple[str, ...] = ()
    arguments: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    max_runtime_seconds: float | None = None


def read_request(root: Field, paths: Paths) -> Request:
    """Return what the request below ``root`` says; what is wrong goes to its findings."""
    _check_members(root, REQUEST)
    _tell_without_effect(root)
    algorithm = root.get("AlgorithmSpecification")
    mode = algorithm.get("TrainingInputMode").text("File", choices=MODES) or "File"
    channels = requested_channels(root.get("InputDataConfig"), mode, paths)
    seconds = root.get("StoppingCondition").get("MaxRuntimeInSeconds").integer(minimum=1)
    arguments = algorithm.get("ContainerArguments")
    return Request(
        name=_name(root.get("TrainingJobName")),
        hyperparameters=root.get("HyperParameters").fields(),
        channels=channels,
        resources=requested_resources(root.get("ResourceConfig")),
        output=_output(root.get("OutputDataConfig")),
        checkpoints=_sync(root.get("CheckpointConfig"), "S3Uri", paths.checkpoints),
        tensorboard=_sync(
            root.get("TensorBoardOutputConfig"),
            "S3OutputPath",
            paths.under("output", "tensorboard"),
        ),
        metrics=_metrics(algorithm.get("MetricDefinitions")),
        entry_point=_entry_point(algorithm.get("ContainerEntrypoint")),
        arguments=arguments.texts() if arguments.present else None,
        environment=_environment(root.get("Environment")),
        max_runtime_seconds=None if seconds is None else float(seconds),
    )


def _check_members(at: Field, shape: Shape) -> None:
    """Note each key at and below ``at`` that is not in the API, or not available here."""
    for name, part in at.fields(shape).items():
        fate = shape.get(name)
        if isinstance(fate, Refused) and part.present:
            part.wrong(fate.why)
        elif isinstance(fate, list):
            for item in part.items():
                _check_members(item, fate[0])
        elif isinstance(fate, Mapping):
            _check_members(part, fate)


def _tell_without_effect(root: Field) -> None:
    """Note once which members of the request mean nothing to a container."""
    unused = without_effect(root.value)
    if unused:
        names = ", ".join(unused)
        root.findings.notes.append(f"{root.file}: no effect here: {names}")
    root.findings.warnings.extend(
        f"{root.file}: {path}: no effect here: {fate.why}"
        for path, fate in unused.items()
        if fate.warns
    )


def _name(at: Field) -> str | None:
    name = at.text()
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", name):
        at.must("letters, digits and hyphens, a letter or digit first, 255 at most")
        return None
    return name


def _entry_point(at: Field) -> tuple[str, ...]:
    words = at.texts()
    if at.present and isinstance(at.value, list) and not (words and words[0]):
        at.wrong("must name a program: its first word is missing")
    return words


def _output(at: Field) -> Output | None:
    if not at.present or not at.is_object():
        return None
    key = at.get("KmsKeyId").text()
    compression = at.get("CompressionType").text("GZIP", choices=("GZIP", "NONE")) or "GZIP"
    uri = at.required_uri("S3OutputPath")
    return None if uri is None else Output(uri=uri, kms_key=key or None, compression=compression)


def _sync(at: Field, name: str, default_path: str) -> Sync | None:
    if not at.present or not at.is_object():
        return None
    path = at.get("LocalPath").absolute_path(default_path)
    uri = at.required_uri(name)
    return None if uri is None else Sync(local_path=path, uri=uri)


def _metrics(at: Field) -> tuple[Metric, ...]:
    found = []
    for item in at.items():
        if not item.is_object():
            continue
        name, regex = item.required("Name"), item.required("Regex")
        if name is None or regex is None:
            continue
        try:
            groups = re.compile(regex).groups
        except (re.error, RecursionError, OverflowError) as error:
            item.get("Regex").wrong(f"{regex!r} is not a regular expression: {error}")
            continue
        if not groups:
            item.get("Regex").wrong(f"{regex!r} has no (group) that holds the value")
            continue
        found.append(Metric(name=name, regex=regex))
    return tuple(found)


def _environment(at: Field) -> dict[str, str]:
    found = {}
    for name, part in at.fields().items():
        if not _VARIABLE.fullmatch(name):
            at.wrong(f"{name!r} cannot be the name of a variable")
        elif not part.present:
            part.must("a string")
        else:
            text = part.text()
            if text is not None:
                found[name] = text
    return found

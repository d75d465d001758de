"""What becomes of each member of the API's CreateTrainingJob request, as a table.

A member is used, has no effect here (which the log says once), or is refused by name. For users,
docs/request.md has the same table, and a test holds both to the shape that botocore ships. What is
below a member without effect is not looked at: nothing depends on it here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sm_runtime.job.model import Json

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

"""Reads a CreateTrainingJob request, the ``job.json`` of a self-managed job.

The shapes are those of the AWS API reference (CreateTrainingJob): a key that is not the API's is a
problem, one that is the API's and says nothing to a container is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sm_runtime.frozen import dataclass, field
from sm_runtime.model import Json, Metric, Output, Source, Sync
from sm_runtime.paths import Paths
from sm_runtime.reader import Field, unfit

MODES = ("File", "Pipe", "FastFile")
DISTRIBUTIONS = ("FullyReplicated", "ShardedByS3Key")
WRAPPERS = ("None", "RecordIO")


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


_REQUEST = _keys(
    """
    TrainingJobName HyperParameters AlgorithmSpecification RoleArn InputDataConfig
    OutputDataConfig ResourceConfig VpcConfig StoppingCondition Tags EnableNetworkIsolation
    EnableInterContainerTrafficEncryption EnableManagedSpotTraining CheckpointConfig
    DebugHookConfig DebugRuleConfigurations TensorBoardOutputConfig ExperimentConfig
    ProfilerConfig ProfilerRuleConfigurations Environment RetryStrategy RemoteDebugConfig
    InfraCheckConfig SessionChainingConfig ServerlessJobConfig MlflowConfig
    ModelPackageConfig
    """
)
_ALGORITHM = _keys(
    """
    TrainingImage AlgorithmName TrainingInputMode MetricDefinitions
    EnableSageMakerMetricsTimeSeries ContainerEntrypoint ContainerArguments
    TrainingImageConfig
    """
)
_RESOURCES = _keys(
    """
    InstanceType InstanceCount VolumeSizeInGB VolumeKmsKeyId KeepAlivePeriodInSeconds
    InstanceGroups TrainingPlanArn InstancePlacementConfig InstancePreferences
    """
)
_CHANNEL = _keys(
    """
    ChannelName DataSource ContentType CompressionType RecordWrapperType InputMode
    ShuffleConfig
    """
)
_S3_SOURCE = _keys(
    """
    S3DataType S3Uri S3DataDistributionType AttributeNames InstanceGroupNames
    ModelAccessConfig HubAccessConfig
    """
)
_FILE_SYSTEM_SOURCE = frozenset(
    {"FileSystemId", "FileSystemAccessMode", "FileSystemType", "DirectoryPath"}
)
_STOPPING = frozenset({"MaxRuntimeInSeconds", "MaxWaitTimeInSeconds", "MaxPendingTimeInSeconds"})
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a CreateTrainingJob request says to a container."""

    name: str | None = None
    hyperparameters: Mapping[str, Field] = field(default_factory=dict)
    input_data_config: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    """As the platform would write ``inputdataconfig.json``."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    instance_type: str | None = None
    instance_count: Field | None = None
    output: Output | None = None
    checkpoints: Sync | None = None
    tensorboard: Sync | None = None
    metrics: tuple[Metric, ...] = ()
    arguments: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    max_runtime_seconds: float | None = None


def read_request(root: Field, paths: Paths) -> Request:
    """Return what the request below ``root`` says; what is wrong goes to its findings."""
    parts = root.fields(_REQUEST)
    algorithm = root.get("AlgorithmSpecification")
    algorithm.fields(_ALGORITHM)
    algorithm.get("AlgorithmName").text()
    mode = algorithm.get("TrainingInputMode").text("File", choices=MODES) or "File"
    config, sources = _channels(root.get("InputDataConfig"), mode)
    resources = root.get("ResourceConfig")
    resources.fields(_RESOURCES)
    stopping = root.get("StoppingCondition")
    stopping.fields(_STOPPING)
    root.get("RetryStrategy").fields({"MaximumRetryAttempts"})
    seconds = stopping.get("MaxRuntimeInSeconds").integer(minimum=1)
    arguments = algorithm.get("ContainerArguments")
    return Request(
        name=_name(root.get("TrainingJobName")),
        hyperparameters=parts["HyperParameters"].fields() if "HyperParameters" in parts else {},
        input_data_config=config,
        sources=sources,
        instance_type=resources.get("InstanceType").text(),
        instance_count=resources.get("InstanceCount"),
        output=_output(root.get("OutputDataConfig")),
        checkpoints=_sync(root.get("CheckpointConfig"), "S3Uri", paths.checkpoints),
        tensorboard=_sync(
            root.get("TensorBoardOutputConfig"),
            "S3OutputPath",
            paths.under("output", "tensorboard"),
        ),
        metrics=_metrics(algorithm.get("MetricDefinitions")),
        arguments=arguments.texts() if arguments.present else None,
        environment=_environment(root.get("Environment")),
        max_runtime_seconds=None if seconds is None else float(seconds),
    )


def channel_name(at: Field, name: str) -> str | None:
    """Return ``name`` if a channel may have it: it is a folder's and part of a variable's name."""
    if name in ("", ".", "..") or "/" in name or "=" in name:
        at.wrong(f"{name!r} cannot be the name of a channel, which is a folder's name")
        return None
    reason = unfit(name)
    if reason:
        at.wrong(f"the channel name {name!r} {reason}")
        return None
    return name


def _name(at: Field) -> str | None:
    name = at.text()
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        at.must("letters, digits and hyphens, a letter or digit first")
        return None
    return name


def _channels(at: Field, job_mode: str) -> tuple[dict[str, Mapping[str, Json]], dict[str, Source]]:
    config: dict[str, Mapping[str, Json]] = {}
    sources: dict[str, Source] = {}
    for item in at.items():
        if not _is_object(item, _CHANNEL):
            continue
        name = _required(item, "ChannelName")
        if name is None or channel_name(item.get("ChannelName"), name) is None:
            continue
        if name in config:
            item.get("ChannelName").wrong(f"another channel has the name {name!r} already")
            continue
        source = _source(item)
        if source is not None:
            sources[name] = source
        config[name] = _channel(item, job_mode)
    return config, sources


def _channel(item: Field, job_mode: str) -> dict[str, Json]:
    """Return a channel as the platform writes it to ``inputdataconfig.json``."""
    s3 = item.get("DataSource").get("S3DataSource")
    found = {
        "TrainingInputMode": item.get("InputMode").text(job_mode, choices=MODES),
        "S3DistributionType": s3.get("S3DataDistributionType").text(
            DISTRIBUTIONS[0], choices=DISTRIBUTIONS
        ),
        "RecordWrapperType": item.get("RecordWrapperType").text("None", choices=WRAPPERS),
    }
    content_type = item.get("ContentType").text()
    return found if content_type is None else {**found, "ContentType": content_type}


def _source(item: Field) -> Source | None:
    """Return where a channel's data is; None where nothing says so: it is in its folder then."""
    at = item.get("DataSource")
    kinds = list(at.fields({"S3DataSource", "FileSystemDataSource", "DatasetSource"}))
    if len(kinds) > 1:
        at.wrong(f"must hold one data source, not {' and '.join(kinds)}")
        return None
    compression = item.get("CompressionType").text("None", choices=("None", "Gzip")) or "None"
    shuffle = item.get("ShuffleConfig")
    shuffle.fields({"Seed"})
    seed = shuffle.get("Seed").integer(minimum=-(2**63))
    if kinds == ["S3DataSource"]:
        return _s3_source(at.get("S3DataSource"), compression, seed)
    if kinds == ["FileSystemDataSource"]:
        system = at.get("FileSystemDataSource")
        known = _is_object(system, _FILE_SYSTEM_SOURCE)
        directory = _required(system, "DirectoryPath") if known else None
        if directory is None:
            return None
        # Both are required by the API; what is not said to be written to is safe.
        mode = system.get("FileSystemAccessMode").text("ro", choices=("rw", "ro"))
        if not directory.startswith(("/", "file:///")):
            system.get("DirectoryPath").must("an absolute path or a file:// URI")
            return None
        return Source(
            uri=directory,
            data_type="FileSystem",
            compression=compression,
            shuffle_seed=seed,
            read_only=mode != "rw",
        )
    if kinds:
        at.get(kinds[0]).wrong("is only to be had on the platform; use S3DataSource")
    return None


def _s3_source(at: Field, compression: str, seed: int | None) -> Source | None:
    if not _is_object(at, _S3_SOURCE):
        return None
    data_type = at.get("S3DataType").text(
        "S3Prefix", choices=("S3Prefix", "ManifestFile", "AugmentedManifestFile")
    )
    names = at.get("AttributeNames").texts()
    if data_type == "AugmentedManifestFile" and not names:
        at.get("AttributeNames").wrong("is missing, AugmentedManifestFile needs it")
    groups = at.get("InstanceGroupNames").texts()
    uri = _uri(at, "S3Uri")
    if uri is None:
        return None
    return Source(
        uri=uri,
        data_type=data_type or "S3Prefix",
        attribute_names=names,
        instance_groups=groups,
        compression=compression,
        shuffle_seed=seed,
    )


def _is_object(at: Field, known: Iterable[str]) -> bool:
    """Whether ``at`` holds an object, of ``known`` keys; if not, that is a problem."""
    if not at.present:
        at.must("an object")
    at.fields(known)
    return isinstance(at.value, dict)


def _required(at: Field, name: str) -> str | None:
    part = at.get(name)
    if not part.present or part.value == "":
        part.wrong("is missing")
        return None
    return part.text()


def _uri(at: Field, name: str) -> str | None:
    """Return the ``s3://`` or ``file://`` URI that the API wants at ``name``."""
    uri = _required(at, name)
    if uri is None:
        return None
    if not re.match(r"s3://[^/]+|file:///", uri):
        at.get(name).must("s3://bucket/prefix or file:///path")
        return None
    return uri


def _output(at: Field) -> Output | None:
    if not at.present or not _is_object(at, {"S3OutputPath", "KmsKeyId", "CompressionType"}):
        return None
    key = at.get("KmsKeyId").text()
    compression = at.get("CompressionType").text("GZIP", choices=("GZIP", "NONE")) or "GZIP"
    uri = _uri(at, "S3OutputPath")
    return None if uri is None else Output(uri=uri, kms_key=key or None, compression=compression)


def _sync(at: Field, name: str, default_path: str) -> Sync | None:
    if not at.present or not _is_object(at, {name, "LocalPath"}):
        return None
    path = at.get("LocalPath").text(default_path) or default_path
    if not path.startswith("/"):
        at.get("LocalPath").must("an absolute path")
    uri = _uri(at, name)
    return None if uri is None else Sync(local_path=path, uri=uri)


def _metrics(at: Field) -> tuple[Metric, ...]:
    found = []
    for item in at.items():
        if not _is_object(item, {"Name", "Regex"}):
            continue
        name, regex = _required(item, "Name"), _required(item, "Regex")
        if name is None or regex is None:
            continue
        try:
            groups = re.compile(regex).groups
        except (re.error, RecursionError, OverflowError) as error:
            item.get("Regex").wrong(f"{regex!r} is no regular expression: {error}")
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

"""Reads a CreateTrainingJob request, the ``job.json`` of a self-managed job.

The shapes are those of the AWS API reference (CreateTrainingJob), in the table of ``api``: a key
that is not the API's is a problem, one that says nothing to a container is named in the log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sm_runtime.contract.api import REQUEST, Refused, Shape, without_effect
from sm_runtime.contract.reader import Field, one_of, unfit
from sm_runtime.job import location
from sm_runtime.job.model import Json, Metric, Output, Paths, Source, Sync

MODES = ("File", "Pipe", "FastFile")
DISTRIBUTIONS = ("FullyReplicated", "ShardedByS3Key")
WRAPPERS = ("None", "RecordIO")
_S3_TYPES = ("S3Prefix", "ManifestFile", "AugmentedManifestFile")
_LONG = 2**63
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """An instance group of the request."""

    name: str
    instance_type: str | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The hosts that a request asks for."""

    instance_type: str | None = None
    counts: Mapping[int, str | None] = field(default_factory=dict)
    """The numbers of hosts that the job may have, each with their instance type; empty: any."""
    groups: tuple[Group, ...] = ()
    at: Field | None = None
    """What says the number of hosts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a CreateTrainingJob request says to a container."""

    name: str | None = None
    hyperparameters: Mapping[str, Field] = field(default_factory=dict)
    input_data_config: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    """As the platform would write ``inputdataconfig.json``."""
    sources: Mapping[str, Source] = field(default_factory=dict)
    spoiled: frozenset[str] = frozenset()
    """The channels of which something is wrong."""
    resources: Resources = Resources()
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
    config, sources, spoiled = _channels(root.get("InputDataConfig"), mode)
    seconds = root.get("StoppingCondition").get("MaxRuntimeInSeconds").integer(minimum=1)
    arguments = algorithm.get("ContainerArguments")
    return Request(
        name=_name(root.get("TrainingJobName")),
        hyperparameters=root.get("HyperParameters").fields(),
        input_data_config=config,
        sources=sources,
        spoiled=spoiled,
        resources=_resources(root.get("ResourceConfig")),
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
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", name):
        at.must("letters, digits and hyphens, a letter or digit first, 255 at most")
        return None
    return name


def _channels(
    at: Field, job_mode: str
) -> tuple[dict[str, Mapping[str, Json]], dict[str, Source], frozenset[str]]:
    config: dict[str, Mapping[str, Json]] = {}
    sources: dict[str, Source] = {}
    spoiled = set()
    for item in at.items():
        if not _is_object(item):
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
        if item.spoiled:
            spoiled.add(name)
    return config, sources, frozenset(spoiled)


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
    kinds = [name for name, part in at.fields().items() if part.present]
    if len(kinds) > 1:
        at.wrong(f"must hold one data source, not {' and '.join(kinds)}")
        return None
    compression = item.get("CompressionType").text("None", choices=("None", "Gzip")) or "None"
    seed = item.get("ShuffleConfig").get("Seed").integer(minimum=-_LONG, maximum=_LONG - 1)
    if kinds == ["S3DataSource"]:
        return _s3_source(at.get("S3DataSource"), compression, seed)
    if kinds == ["FileSystemDataSource"]:
        return _file_system_source(at.get("FileSystemDataSource"), compression, seed)
    return None


def _file_system_source(at: Field, compression: str, seed: int | None) -> Source | None:
    directory = _required(at, "DirectoryPath") if _is_object(at) else None
    # Both are required by the API; what is not said to be written to is safe.
    mode = at.get("FileSystemAccessMode").text("ro", choices=("rw", "ro"))
    if directory is None:
        return None
    if not (directory.startswith("/") or location.is_file(directory)):
        at.get("DirectoryPath").must("an absolute path or a file:// URI")
        return None
    return Source(
        uri=directory,
        data_type="FileSystem",
        compression=compression,
        shuffle_seed=seed,
        read_only=mode != "rw",
    )


def _s3_source(at: Field, compression: str, seed: int | None) -> Source | None:
    if not _is_object(at):
        return None
    if at.get("S3DataType").value == "Converse":
        at.get("S3DataType").wrong(
            "'Converse' is available on SageMaker only, whose own programs read that format;"
            f" use {one_of(_S3_TYPES)}"
        )
        return None
    data_type = at.get("S3DataType").text("S3Prefix", choices=_S3_TYPES)
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


def _resources(at: Field) -> Resources:
    """Return the hosts that ``ResourceConfig`` asks for."""
    instance_type = at.get("SelectedInstanceType").text() or at.get("InstanceType").text()
    groups = _groups(at.get("InstanceGroups"))
    count_at = at.get("InstanceCount")
    count = count_at.integer(minimum=0)
    if at.get("InstanceGroups").spoiled:
        return Resources(instance_type=instance_type)
    if groups:
        total = sum(group.count for group in groups)
        if count and count != total:
            count_at.wrong(f"is {count}, but InstanceGroups have {total} hosts together")
        return Resources(groups=groups, counts={total: None}, at=at.get("InstanceGroups"))
    selected_at = at.get("SelectedInstanceCount")
    selected = selected_at.integer(minimum=0)
    if selected:
        return Resources(counts={selected: instance_type}, at=selected_at)
    preferences_at = at.get("InstancePreferences")
    if preferences := _preferences(preferences_at, count):
        return Resources(counts=preferences, at=preferences_at)
    counts = {count: instance_type} if count else {}
    return Resources(instance_type=instance_type, counts=counts, at=count_at)


def _preferences(at: Field, count: int | None) -> dict[int, str | None]:
    """Return the instance type for each number of hosts that ``InstancePreferences`` allow.

    Which of them was chosen the request does not say: the number of hosts does, if it is one's
    alone. ``count`` is for those that have no number of their own.
    """
    found: dict[int, str | None] = {}
    for item in at.items():
        own = item.get("InstanceCount").integer(minimum=1) or count
        instance_type = item.get("InstanceType").text()
        if not own:
            return {}
        found[own] = instance_type if found.get(own, instance_type) == instance_type else None
    return found


def _groups(at: Field) -> tuple[Group, ...]:
    found: list[Group] = []
    for item in at.items():
        if not _is_object(item):
            continue
        name = _required(item, "InstanceGroupName")
        if not item.get("InstanceCount").present:
            item.get("InstanceCount").wrong("is missing")
        count = item.get("InstanceCount").integer(minimum=0)
        instance_type = item.get("InstanceType").text()
        if name in [group.name for group in found]:
            item.get("InstanceGroupName").wrong(f"another group has the name {name!r} already")
        elif name is not None and count is not None:
            found.append(Group(name=name, instance_type=instance_type, count=count))
    return tuple(found)


def _entry_point(at: Field) -> tuple[str, ...]:
    words = at.texts()
    if at.present and isinstance(at.value, list) and not (words and words[0]):
        at.wrong("must name a program: its first word is missing")
    return words


def _is_object(at: Field) -> bool:
    """Whether ``at`` holds an object; if not, that is a problem."""
    if not isinstance(at.value, dict):
        at.must("an object")
    return isinstance(at.value, dict)


def _required(at: Field, name: str) -> str | None:
    part = at.get(name)
    if not part.present or part.value == "":
        part.wrong("is missing")
        return None
    return part.text()


def storage_uri(at: Field) -> str | None:
    """Return the ``s3://`` or ``file://`` URI at ``at``, where the API wants one."""
    uri = at.text()
    if uri is None:
        return None
    try:
        location.parse(uri)
    except ValueError as error:
        if "credentials" in str(error):  # then the value is not shown
            at.wrong(str(error))
        else:
            at.must("s3://bucket/prefix or file:///path")
        return None
    return uri


def absolute_path(at: Field, default: str) -> str:
    """Return the path of a folder of the container."""
    path = at.text(default) or default
    if not path.startswith("/"):
        at.must("an absolute path")
    return path


def _uri(at: Field, name: str) -> str | None:
    """Return the URI that must be there at ``name``."""
    return None if _required(at, name) is None else storage_uri(at.get(name))


def _output(at: Field) -> Output | None:
    if not at.present or not _is_object(at):
        return None
    key = at.get("KmsKeyId").text()
    compression = at.get("CompressionType").text("GZIP", choices=("GZIP", "NONE")) or "GZIP"
    uri = _uri(at, "S3OutputPath")
    return None if uri is None else Output(uri=uri, kms_key=key or None, compression=compression)


def _sync(at: Field, name: str, default_path: str) -> Sync | None:
    if not at.present or not _is_object(at):
        return None
    path = absolute_path(at.get("LocalPath"), default_path)
    uri = _uri(at, name)
    return None if uri is None else Sync(local_path=path, uri=uri)


def _metrics(at: Field) -> tuple[Metric, ...]:
    found = []
    for item in at.items():
        if not _is_object(item):
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

"""Reads a job's channels: from the request, and from ``inputdataconfig.json``, which wins."""

from __future__ import annotations

from collections.abc import Mapping

from sm_runtime.contract.reader import Field, one_of, unfit
from sm_runtime.job import location
from sm_runtime.job.dataclass import replace
from sm_runtime.job.model import Channel, Cluster, Json, Paths, Source

MODES = ("File", "Pipe", "FastFile")
DISTRIBUTIONS = ("FullyReplicated", "ShardedByS3Key")
WRAPPERS = ("None", "RecordIO")
_S3_TYPES = ("S3Prefix", "ManifestFile", "AugmentedManifestFile")
_LONG = 2**63


def read_channels(
    root: Field, asked: Mapping[str, Channel | None], cluster: Cluster, paths: Paths
) -> tuple[tuple[Channel, ...], dict[str, Json]]:
    """Return this host's channels, and ``inputdataconfig.json`` as it is or would have been.

    What the file says wins over the request, key by key. ``asked`` are the channels of the request.
    """
    channels = {name: channel for name, channel in asked.items() if channel is not None}
    config: dict[str, Json] = {name: _as_file(channel) for name, channel in channels.items()}
    for name, at in root.fields().items():
        if channel_name(root, name) is None or not at.is_object():
            continue
        known = channels.get(name, Channel(name=name, path=f"{paths.data}/{name}"))
        found = _of_file(at, known)
        if at.spoiled or asked.get(name, found) is None:
            channels.pop(name, None)
        else:
            channels[name] = found
            config[name] = {**config.get(name, {}), **at.value}
    mine = tuple(channel for channel in channels.values() if channel.reaches(cluster))
    return mine, {channel.name: config[channel.name] for channel in mine}


def requested_channels(at: Field, job_mode: str, paths: Paths) -> dict[str, Channel | None]:
    """Return the channels of a request by their names; None for one that something is wrong with.

    ``job_mode`` is the mode of those that name none.
    """
    found: dict[str, Channel | None] = {}
    for item in at.items():
        if not item.is_object():
            continue
        name = item.required("ChannelName")
        if name is None or channel_name(item.get("ChannelName"), name) is None:
            continue
        if name in found:
            item.get("ChannelName").wrong(f"another channel has the name {name!r} already")
            continue
        channel = _of_request(item, name, job_mode, paths)
        found[name] = None if item.spoiled else channel
    return found


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


def _of_request(item: Field, name: str, job_mode: str, paths: Paths) -> Channel:
    s3 = item.get("DataSource").get("S3DataSource")
    source = _source(item)
    return Channel(
        name=name,
        path=f"{paths.data}/{name}",
        mode=item.get("InputMode").text(job_mode, choices=MODES) or job_mode,
        distribution=_choice(s3.get("S3DataDistributionType"), DISTRIBUTIONS),
        record_wrapper=_choice(item.get("RecordWrapperType"), WRAPPERS),
        content_type=item.get("ContentType").text(),
        source=source,
    )


def _of_file(at: Field, known: Channel) -> Channel:
    """Return ``known`` with what its part of ``inputdataconfig.json`` says."""
    found: dict[str, Json] = {}
    if "TrainingInputMode" in at.value:
        found["mode"] = _choice(at.get("TrainingInputMode"), MODES)
    if "S3DistributionType" in at.value:
        found["distribution"] = _choice(at.get("S3DistributionType"), DISTRIBUTIONS)
    if "RecordWrapperType" in at.value:
        found["record_wrapper"] = _choice(at.get("RecordWrapperType"), WRAPPERS)
    if "ContentType" in at.value:
        found["content_type"] = at.get("ContentType").text()
    return replace(known, **found)


def _as_file(channel: Channel) -> dict[str, Json]:
    """Return a channel as the platform writes it to ``inputdataconfig.json``."""
    found = {
        "TrainingInputMode": channel.mode,
        "S3DistributionType": channel.distribution,
        "RecordWrapperType": channel.record_wrapper,
    }
    content_type = channel.content_type
    return found if content_type is None else {**found, "ContentType": content_type}


def _choice(at: Field, choices: tuple[str, ...]) -> str:
    return at.text(choices=choices) or choices[0]


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
    directory = at.required("DirectoryPath") if at.is_object() else None
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
    if not at.is_object():
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
    uri = at.required_uri("S3Uri")
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

"""Reads which hosts take part: ``resourceconfig.json``, else variables, else this host alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sm_runtime.hyperparameters import DISTRIBUTIONS
from sm_runtime.model import Cluster, InstanceGroup, Json
from sm_runtime.reader import Document, Field
from sm_runtime.request import Request

_GROUP = "homogeneousCluster"
_HOST = re.compile(r"[^\s/,=\0]+")


def read_cluster(
    root: Field,
    request: Request,
    environ: Mapping[str, str],
    hostname: str,
    framework: Mapping[str, Json],
    *,
    document: Document | None,
    bare: bool,
    managed: bool,
) -> tuple[Cluster, dict[str, Json]]:
    """Return the cluster, and ``resourceconfig.json`` as it is or would have been.

    ``document`` is the file, if there is one; ``bare`` says that there is no file at all.
    """
    hosts = _hosts(root, environ, required=managed and document is not None)
    current = _current_host(root, environ, hosts, hostname)
    hosts = hosts or (current,)
    if document is None and managed and not bare and not environ.get("SM_RUNTIME_HOSTS"):
        root.findings.notes.append(
            f"{root.file}: does not exist though other files do: {current!r} is taken for the only"
            " host"
        )
    _check_count(request.instance_count, hosts)
    config = _synthesised(root, request, hosts, current)
    at = root.with_value(config)
    groups = _groups(at.get("instance_groups"))
    group = at.get("current_group_name").text(_GROUP) or _GROUP
    topology = at.get("topology")
    topology.items()
    cluster = Cluster(
        current_host=current,
        hosts=hosts,
        network_interface=at.get("network_interface_name").text("eth0") or "eth0",
        current_instance_type=at.get("current_instance_type").text("local") or "local",
        current_group=group,
        groups=groups,
        distribution_groups=_distribution_groups(framework, group, groups, root),
        topology=config.get("topology", []),
    )
    return cluster, config


def _hosts(root: Field, environ: Mapping[str, str], *, required: bool) -> tuple[str, ...]:
    at = root.get("hosts")
    text = environ.get("SM_RUNTIME_HOSTS", "")
    if not at.present and text.strip():
        names: Json = [name.strip() for name in text.split(",")]
        at = Field("environment", "SM_RUNTIME_HOSTS", names, root.findings)
    elif not at.present:
        # A cluster whose hosts each believe to be alone would train as many models.
        if required and root.present:
            at.wrong("is missing")
        return ()
    hosts = at.texts()
    if isinstance(at.value, list) and not at.value:
        at.wrong("must name at least one host")
    for host in hosts:
        if not _HOST.fullmatch(host):
            at.wrong(f"{host!r} cannot be the name of a host")
    for host in sorted({host for host in hosts if hosts.count(host) > 1}):
        at.wrong(f"names the host {host!r} more than once")
    return hosts


def _current_host(
    root: Field, environ: Mapping[str, str], hosts: tuple[str, ...], hostname: str
) -> str:
    at = root.get("current_host")
    named = environ.get("SM_RUNTIME_CURRENT_HOST", "").strip()
    if not at.present and named:
        at = Field("environment", "SM_RUNTIME_CURRENT_HOST", named, root.findings)
    if at.present:
        host = at.text()
        if host is not None and hosts and host not in hosts:
            at.wrong(f"{host!r} is not one of the hosts {', '.join(map(repr, hosts))}")
        elif host is not None and not _HOST.fullmatch(host):
            at.wrong(f"{host!r} cannot be the name of a host")
        return host or hostname
    if not hosts or hostname in hosts:
        return hostname
    if len(hosts) > 1:
        at.wrong(
            f"is missing, and the container's name {hostname!r} is not one of the hosts"
            f" {', '.join(map(repr, hosts))}; SM_RUNTIME_CURRENT_HOST may name it"
        )
    return hosts[0]


def _check_count(at: Field | None, hosts: tuple[str, ...]) -> None:
    if at is None:
        return
    count = at.integer(minimum=0)
    if count and count != len(hosts):
        known = f"{len(hosts)} host{'s are' if len(hosts) != 1 else ' is'} known"
        at.wrong(f"is {count}, but {known}; resourceconfig.json or SM_RUNTIME_HOSTS must name all")


def _synthesised(
    root: Field, request: Request, hosts: tuple[str, ...], current: str
) -> dict[str, Json]:
    """Return the file with what it leaves out; without a file, what the platform would write."""
    if root.present:
        config: dict[str, Json] = {**root.value}
        config.setdefault("hosts", list(hosts))
        config.setdefault("current_host", current)
        if request.instance_type:
            config.setdefault("current_instance_type", request.instance_type)
        return config
    instance_type = request.instance_type or "local"
    return {
        "current_host": current,
        "current_instance_type": instance_type,
        "current_group_name": _GROUP,
        "hosts": list(hosts),
        "instance_groups": [
            {
                "instance_group_name": _GROUP,
                "instance_type": instance_type,
                "hosts": list(hosts),
            }
        ],
        "network_interface_name": "eth0",
    }


def _groups(at: Field) -> tuple[InstanceGroup, ...]:
    groups: list[InstanceGroup] = []
    for item in at.items():
        if not isinstance(item.value, dict):
            item.must("an object")
            continue
        name = item.get("instance_group_name").text()
        if not name:
            item.get("instance_group_name").wrong("is missing")
        elif name in [group.name for group in groups]:
            item.get("instance_group_name").wrong(f"another group has the name {name!r} already")
        else:
            instance_type = item.get("instance_type").text("local") or "local"
            hosts = item.get("hosts").texts()
            groups.append(InstanceGroup(name=name, instance_type=instance_type, hosts=hosts))
    return tuple(groups)


def _distribution_groups(
    framework: Mapping[str, Json],
    current_group: str,
    groups: tuple[InstanceGroup, ...],
    root: Field,
) -> tuple[str, ...]:
    """Return the groups that take part in distributed training (SageMaker training toolkit)."""
    key = "sagemaker_distribution_instance_groups"
    named = framework.get(key)
    if named is None:
        return (current_group,) if any(framework.get(flag) for flag in DISTRIBUTIONS) else ()
    known = [group.name for group in groups]
    for name in named:
        if known and name not in known:
            root.findings.problems.append(
                f"hyperparameters: {key}: {name!r} is none of the instance groups"
                f" {', '.join(map(repr, known))}"
            )
    return tuple(named)

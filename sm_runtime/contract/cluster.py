"""Reads which hosts take part: ``resourceconfig.json``, else variables, else an engine's own, else
this host alone.

The ``ResourceConfig`` of a request says of which types they are, and how many there must be.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from sm_runtime.contract import engines
from sm_runtime.contract.engines import Engine, Placement
from sm_runtime.contract.hyperparameters import DISTRIBUTIONS
from sm_runtime.contract.reader import Document, Field
from sm_runtime.job.dataclass import dataclass, field
from sm_runtime.job.model import Cluster, InstanceGroup, Json

_GROUP = "homogeneousCluster"
_TYPE = "local"
_HOST = re.compile(r"[^\s/,=\0]+")


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


def read_cluster(
    root: Field,
    asked: Resources,
    environ: Mapping[str, str],
    hostname: str,
    framework: Mapping[str, Json],
    *,
    engine: Engine | None,
    whole_name: str = "",
    document: Document | None,
    bare: bool,
    managed: bool,
) -> tuple[Cluster, dict[str, Json]]:
    """Return the cluster, and ``resourceconfig.json`` as it is or would have been.

    ``asked`` are the hosts of the request, ``engine`` is what runs the job, ``whole_name`` is
    ``hostname`` with its domain; ``document`` is the file, if there is one; ``bare`` says that
    there is no file at all.
    """
    hosts = _hosts(root, environ, required=managed and document is not None)
    placed: Placement | None = None
    if not hosts and (document is None or (root.present and not managed)):
        placed = engines.placement(engine, environ, root.findings, whole_name or hostname)
    if placed:
        hosts, hostname = placed.hosts, placed.current
    current = _current_host(root, environ, hosts, hostname)
    hosts = hosts or (current,)
    named = placed or environ.get("SM_RUNTIME_HOSTS")
    if document is None and managed and not bare and not named:
        root.findings.notes.append(
            f"{root.file}: does not exist though other files do: {current!r} is taken for the only"
            " host"
        )
    if root.present or document is None:  # else a file that cannot be read may name them
        _check_count(asked, hosts)
    config = _synthesised(root, asked, hosts, current)
    at = root.with_value(config)
    groups = _groups(at.get("instance_groups"))
    if not managed:
        _check_groups(at.get("instance_groups"), groups, hosts)
    group = at.get("current_group_name").text(_GROUP) or _GROUP
    topology = at.get("topology")
    topology.items()
    cluster = Cluster(
        current_host=current,
        hosts=hosts,
        network_interface=at.get("network_interface_name").text("eth0") or "eth0",
        current_instance_type=at.get("current_instance_type").text(_TYPE) or _TYPE,
        current_group=group,
        groups=groups,
        distribution_groups=_distribution_groups(framework, group, groups, root),
        topology=config.get("topology", []),
        first=_first(framework, groups),
        engine_job=placed.job if placed else "",
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
    for host in sorted(host for host, times in Counter(hosts).items() if times > 1):
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


def _check_count(asked: Resources, hosts: tuple[str, ...]) -> None:
    """Note that the request wants other hosts than are known: each would believe to be alone."""
    if asked.at is None or not asked.counts or len(hosts) in asked.counts:
        return
    known = f"{len(hosts)} host{'s are' if len(hosts) != 1 else ' is'} known"
    wanted = " or ".join(map(str, sorted(asked.counts)))
    says = f"is {wanted}" if asked.at.key.endswith("Count") else f"asks for {wanted} hosts"
    asked.at.wrong(f"{says}, but {known}; resourceconfig.json or SM_RUNTIME_HOSTS must name all")


def _synthesised(
    root: Field, asked: Resources, hosts: tuple[str, ...], current: str
) -> dict[str, Json]:
    """Return the file with what it leaves out; without a file, what the platform would write."""
    groups = _of_request(asked, hosts)
    if root.present:
        config: dict[str, Json] = {**root.value}
        config.setdefault("hosts", list(hosts))
        config.setdefault("current_host", current)
        instance_type = asked.counts.get(len(hosts)) or asked.instance_type
        if asked.groups:
            own = _group_of(config.setdefault("instance_groups", groups), current)
            config.setdefault("current_group_name", own.get("instance_group_name", _GROUP))
            instance_type = own.get("instance_type")
        if instance_type:
            config.setdefault("current_instance_type", instance_type)
        return config
    own = _group_of(groups, current)
    return {
        "current_host": current,
        "current_instance_type": own.get("instance_type", _TYPE),
        "current_group_name": own.get("instance_group_name", _GROUP),
        "hosts": list(hosts),
        "instance_groups": groups,
        "network_interface_name": "eth0",
    }


def _of_request(asked: Resources, hosts: tuple[str, ...]) -> list[dict[str, Json]]:
    """Return the groups that the request makes of ``hosts``, in their order."""
    instance_type = asked.counts.get(len(hosts)) or asked.instance_type
    wanted = asked.groups or (Group(name=_GROUP, instance_type=instance_type, count=len(hosts)),)
    groups: list[dict[str, Json]] = []
    taken = 0
    for group in wanted:
        groups.append(
            {
                "instance_group_name": group.name,
                "instance_type": group.instance_type or _TYPE,
                "hosts": list(hosts[taken : taken + group.count]),
            }
        )
        taken += group.count
    return groups


def _group_of(groups: Json, host: str) -> Mapping[str, Json]:
    """Return the group that has ``host``; ``groups`` may be whatever the file has."""
    for group in groups if isinstance(groups, list) else ():
        if isinstance(group, dict) and host in (group.get("hosts") or ()):
            return group
    return {}


def _check_groups(at: Field, groups: tuple[InstanceGroup, ...], hosts: tuple[str, ...]) -> None:
    """Note each host of a group that is not a host of the job."""
    known = frozenset(hosts)
    for group in groups:
        for host in group.hosts:
            if host not in known:
                at.wrong(
                    f"the host {host!r} of the group {group.name!r} is not one of the hosts"
                    f" {', '.join(map(repr, hosts))}"
                )


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
            instance_type = item.get("instance_type").text(_TYPE) or _TYPE
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
                f"hyperparameters: {key}: {name!r} is not one of the instance groups"
                f" {', '.join(map(repr, known))}"
            )
    return tuple(named)


def _first(framework: Mapping[str, Json], groups: tuple[InstanceGroup, ...]) -> str:
    """Return the host that comes first where each group trains by itself, under its own leader."""
    if framework.get("sagemaker_distribution_instance_groups") is not None or len(groups) < 2:
        return ""
    if not any(framework.get(flag) for flag in DISTRIBUTIONS):
        return ""
    return next((group.hosts[0] for group in groups if group.hosts), "")


def requested_resources(at: Field) -> Resources:
    """Return the hosts that ``ResourceConfig`` asks for."""
    instance_type = at.get("SelectedInstanceType").text() or at.get("InstanceType").text()
    groups = _requested_groups(at.get("InstanceGroups"))
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


def _requested_groups(at: Field) -> tuple[Group, ...]:
    found: list[Group] = []
    for item in at.items():
        if not item.is_object():
            continue
        name = item.required("InstanceGroupName")
        if not item.get("InstanceCount").present:
            item.get("InstanceCount").wrong("is missing")
        count = item.get("InstanceCount").integer(minimum=0)
        instance_type = item.get("InstanceType").text()
        if name in [group.name for group in found]:
            item.get("InstanceGroupName").wrong(f"another group has the name {name!r} already")
        elif name is not None and count is not None:
            found.append(Group(name=name, instance_type=instance_type, count=count))
    return tuple(found)

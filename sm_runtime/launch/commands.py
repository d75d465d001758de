"""What a host starts for a plan, put together from the ways to run a script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from sm_runtime.job.model import Entry, Hardware, Job
from sm_runtime.launch import tf_config
from sm_runtime.launch.distribution import PLAIN, RENDEZVOUS, SERVER, TEMPLATE, TORCHRUN, Plan, Role

if TYPE_CHECKING:
    Ports: TypeAlias = Mapping[str, int | Mapping[str, int]]


def script(
    job: Job,
    plan: Plan,
    entry: Entry,
    devices: Hardware,
    python: str,
    *,
    ports: Ports | None = None,
) -> tuple[str, ...]:
    """Return the argument vector of the script's process, as this host's supervisor starts it.

    ``ports`` are agreed on by the hosts. Raises ConfigError where a template does not fit the
    program.
    """
    if plan.kind == TEMPLATE:
        from sm_runtime.launch import custom

        return custom.command(
            job.options.launcher,
            plan,
            entry,
            devices,
            python,
            port=meeting(plan, ports),
        )
    return entry.argv


def variables(
    job: Job,
    plan: Plan,
    role: Role,
    environ: Mapping[str, str],
    *,
    ports: Ports | None = None,
    interface: str | None = None,
) -> dict[str, str]:
    """Return the variables that a process has for its role, on top of ``environ``.

    ``interface`` is the device in use, by default the configured one; what ``environ`` says about
    it is left alone.
    """
    if plan.kind == PLAIN:
        return {}
    if role.task:
        found = {tf_config.VARIABLE: tf_config.text(plan, role, ports)}
        # A parameter server that sees the GPUs takes their memory.
        return found | ({"CUDA_VISIBLE_DEVICES": "-1"} if role.name == SERVER else {})
    device = interface or job.cluster.network_interface
    if plan.kind == TORCHRUN:
        from sm_runtime.launch import torchrun

        return torchrun.variables(device, job.cluster.current_instance_type, environ)
    found = {"NCCL_SOCKET_IFNAME": device, "HOROVOD_GLOO_IFACE": device}
    return {name: value for name, value in found.items() if name not in environ}


def meeting(plan: Plan, ports: Ports | None = None) -> int:
    """Return the port at which the processes of all hosts meet: the leader's."""
    port = {**plan.ports, **(ports or {})}[RENDEZVOUS]
    return port if isinstance(port, int) else port[plan.leader]

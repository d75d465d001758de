"""The variable TF_CONFIG: which host is what in a cluster of TensorFlow's, and which one is this.

The text is to the byte that of SageMaker's TensorFlow training toolkit, where the toolkit has one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sm_runtime.launch.distribution import Plan, Ports, Role

VARIABLE = "TF_CONFIG"


def text(plan: Plan, role: Role, ports: Ports | None = None) -> str:
    """Return the TF_CONFIG of a process of ``plan``.

    Without ``ports`` it is those that the plan wants.
    """
    return json.dumps(
        {
            "cluster": cluster(plan, ports),
            "environment": "cloud",
            "task": {"index": role.index, "type": role.task},
        }
    )


def cluster(plan: Plan, ports: Ports | None = None) -> dict[str, list[str]]:
    """Return the addresses of the cluster by task type, in the order of the toolkit."""
    agreed = {**plan.ports, **(ports or {})}

    def addresses(purpose: str, hosts: tuple[str, ...]) -> list[str]:
        port = agreed[purpose]
        return [f"{host}:{port if isinstance(port, int) else port[host]}" for host in hosts]

    if plan.kind == "multi_worker":
        return {"worker": addresses("script", plan.hosts)}
    # The evaluator sees the cluster and is no part of it, says TensorFlow.
    workers = plan.hosts[1 : -1 if plan.evaluator else None]
    found = {
        plan.layout: addresses("script", plan.hosts[:1]),
        "ps": addresses("server", plan.hosts),
    }
    if workers:
        found["worker"] = addresses("script", workers)
    return found

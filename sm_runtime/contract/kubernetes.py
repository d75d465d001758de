"""The hosts of a Job of Kubernetes, and of Kubeflow's jobs, by the names that they give to pods.

Pods of an Indexed Job are called ``<job>-<index>``, by their host name; with a headless service
that the pods' ``subdomain`` names, ``<job>-<index>.<subdomain>`` resolves on all of them
(kubernetes.io, "Job with Pod-to-Pod Communication").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_FIRST = re.compile(rf"(?P<stem>{_LABEL})-0(?P<domain>(\.{_LABEL})*)")
_MASTER = "-master"
"""The end of what Kubeflow's training operator calls the first pod of a PyTorchJob, without its
number; the others are numbered anew as ``-worker``.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """What the pods of a job are called: ``stem``, a number, ``domain``."""

    stem: str
    domain: str
    """Of the service, with its dot; empty where there is none."""

    def hosts(self, count: int) -> tuple[str, ...]:
        """Return the names of the first pods, in order."""
        if not self.stem.endswith(_MASTER):
            return tuple(f"{self.stem}-{number}{self.domain}" for number in range(count))
        worker = self.stem.removesuffix(_MASTER) + "-worker"
        others = (f"{worker}-{number}{self.domain}" for number in range(count - 1))
        return (f"{self.stem}-0{self.domain}", *others)


def of_first(name: str) -> Pods | None:
    """Return what pods are called, of which the first one is called ``name``; None: no such."""
    match = _FIRST.fullmatch(name)
    return Pods(stem=match["stem"], domain=match["domain"]) if match else None


def of_own(name: str, index: int) -> Pods | None:
    """Return what pods are called, of which number ``index`` has the whole name ``name``.

    Of the service's domain only its own name is taken, which is what resolves in its namespace.
    None where that is no pod's name, as with the node's network.
    """
    host, _, domain = name.partition(".")
    stem = host.removesuffix(f"-{index}")
    if stem in (host, ""):
        return None
    subdomain = domain.partition(".")[0]
    return Pods(stem=stem, domain=f".{subdomain}" if subdomain else "")

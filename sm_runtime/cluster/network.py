"""Which network interface and which addresses belong to a job."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

from sm_runtime.job.errors import LaunchError

LOOKUP_SECONDS = 5.0
"""How long names are looked up to choose an interface: those who are late have none yet."""

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
"""The kinds of addresses that are used, the first is preferred."""
_ANY_PORT = 9  # discard: nothing is sent, the kernel only chooses a route


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """The network interface that a job uses on this host."""

    name: str
    address: str
    """The address of this host on it."""
    reason: str = ""
    """Why it is not the configured one; empty if it is."""

    @property
    def text(self) -> str:
        """What the log says about the choice."""
        return f"using {self.name} ({self.address}){', ' + self.reason if self.reason else ''}"


def choose(configured: str, peers: Iterable[str], current_host: str) -> Interface:
    """Return the configured interface if it exists and has an address, else the one in use.

    That is the one that routes to the first of ``peers`` whose name resolves by now, or the one
    that this host's own name stands for, or that of the default route. Raises LaunchError where
    this host has no network.
    """
    if address := address_of(configured):
        return Interface(name=configured, address=address)
    exists = configured in _interfaces()
    reason = f"{configured} {'has no address' if exists else 'not found'}"
    until = time.monotonic() + LOOKUP_SECONDS
    for peer in peers:
        if time.monotonic() >= until:
            break
        for remote in resolve(peer)[0]:
            if (found := _route(remote)) and (name := _holder(found)):
                return Interface(name=name, address=found, reason=reason)
    for own in resolve(current_host)[0]:
        if (name := _holder(own)) and name != "lo":
            return Interface(name=name, address=own, reason=reason)
    for name in [*_default_routes(), *_interfaces()]:
        if name != "lo" and (address := address_of(name)):
            return Interface(name=name, address=address, reason=reason)
    raise LaunchError(
        f"resourceconfig.json: network_interface_name: {reason}, and this host has no other"
    )


def resolve(host: str) -> tuple[tuple[str, ...], str]:
    """Return the addresses that a host's name stands for, and why there is none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return (), f"its name does not resolve ({getattr(error, 'strerror', None) or error})"
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found)), ""


def address_of(name: str) -> str | None:
    """Return the first IPv4 address of an interface, else its first global IPv6 address."""
    found = _interfaces().get(name, ())
    return next(
        (address for family in _FAMILIES for kind, address, _ in found if kind == family), None
    )


def network_of(name: str) -> str | None:
    """Return the IPv4 network of an interface, like ``10.0.0.0/24``; None where it has none."""
    import ipaddress

    for kind, address, mask in _interfaces().get(name, ()):
        if kind == socket.AF_INET and mask:
            return str(ipaddress.ip_network(f"{address}/{mask}", strict=False))
    return None


def free_ports(address: str, wanted: Iterable[int]) -> list[int]:
    """Return for each wanted TCP port that port, or the next one above it, which is free now.

    Raises LaunchError where there is none.
    """
    found: list[int] = []
    for first in wanted:
        port = next((p for p in range(first, 65536) if p not in found and _free(address, p)), None)
        if port is None:
            raise LaunchError(f"{address}: no TCP port from {first} on is free")
        found.append(port)
    return found


def family_of(address: str) -> socket.AddressFamily:
    """Return whether an address is one of IPv6 or of IPv4."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _free(address: str, port: int) -> bool:
    with socket.socket(family_of(address), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))  # the engines listen on all addresses
        except OSError:
            return False
    return True


def _interfaces() -> dict[str, list[tuple[int, str, str | None]]]:
    """Return, by the interfaces' names in order, their addresses: family, address and netmask.

    IPv6 addresses that are good for one link or this host alone are left out.
    """
    import psutil

    return {
        name: [
            (each.family, each.address, each.netmask)
            for each in found
            if each.family in _FAMILIES and each.address != "::1" and "%" not in each.address
        ]
        for name, found in sorted(psutil.net_if_addrs().items())
    }


def _route(remote: str) -> str | None:
    """Return the own address that the kernel would use towards ``remote``."""
    with (
        contextlib.suppress(OSError),
        socket.socket(family_of(remote), socket.SOCK_DGRAM) as probe,
    ):
        probe.connect((remote, _ANY_PORT))
        return str(probe.getsockname()[0])
    return None


def _holder(address: str) -> str | None:
    """Return the interface that has an address."""
    return next(
        (
            name
            for name, found in _interfaces().items()
            if address in (each for _, each, _ in found)
        ),
        None,
    )


def _default_routes() -> list[str]:
    """Return the interfaces of the IPv4 default routes (/proc/net/route)."""
    if not os.path.exists("/proc/net/route"):
        return []
    with open("/proc/net/route", encoding="ascii") as file:
        rows = [line.split() for line in file][1:]
    return [row[0] for row in rows if row[1] == "00000000"]

"""Which network interface and which addresses belong to a job."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass

from sm_runtime.job.errors import LaunchError

LOOKUP_SECONDS = 5.0
"""How long names are looked up to choose an interface: those who are late have none yet."""

_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B  # netdevice(7)
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
    exists = configured in _names()
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
    for name in [*_default_routes(), *_names()]:
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
    import fcntl

    try:
        raw = name.encode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", raw[:15]))
        return socket.inet_ntoa(answer[20:24])
    except OSError:
        return next((address for owner, address in _ipv6() if owner == name), None)


def network_of(name: str) -> str | None:
    """Return the IPv4 network of an interface, like ``10.0.0.0/24``; None where it has none."""
    import fcntl
    import ipaddress

    address = address_of(name)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            request = struct.pack("256s", name.encode()[:15])
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFNETMASK, request)
        mask = socket.inet_ntoa(answer[20:24])
        return str(ipaddress.ip_network(f"{address}/{mask}", strict=False))
    except (OSError, ValueError):
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


def _names() -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(name for _, name in socket.if_nameindex())
    return []


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
    for name in _names():
        if address_of(name) == address:
            return name
    return next((owner for owner, other in _ipv6() if other == address), None)


def _ipv6() -> list[tuple[str, str]]:
    """Return the interfaces' global IPv6 addresses (/proc/net/if_inet6)."""
    found = []
    with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as file:
        for line in file:
            digits, _, _, scope, _, name = line.split()
            if scope == "00":
                found.append((name, socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))))
    return found


def _default_routes() -> list[str]:
    """Return the interfaces of the IPv4 default routes (/proc/net/route)."""
    if not os.path.exists("/proc/net/route"):
        return []
    with open("/proc/net/route", encoding="ascii") as file:
        rows = [line.split() for line in file][1:]
    return [row[0] for row in rows if row[1] == "00000000"]

"""Hosts on a network of their own: network namespaces, else loopback addresses.

As root, with ``ip``, each host has an interface ``eth0``, an address, names that resolve, and, if
wanted, a machine's name of its own. Where namespaces cannot be made, hosts are loopback addresses,
which are their names as well; then all of them share one network stack, and only a secret tells a
host from a stranger.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_NAMES = Path("/etc/netns")
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Host:
    """A host: ``prefix`` has a command run there."""

    name: str
    address: str
    interface: str
    prefix: tuple[str, ...]
    namespace: str = ""

    def listeners(self) -> set[tuple[str, int]]:
        """Return the addresses and ports on which TCP connections are taken here."""
        shown = subprocess.run(
            [*self.prefix, "cat", "/proc/net/tcp", "/proc/net/tcp6"],
            stdout=subprocess.PIPE,
            check=True,
        )
        found = set()
        for line in shown.stdout.decode().splitlines():
            words = line.split()
            if words[3] == "0A":  # LISTEN
                raw, _, port = words[1].partition(":")
                octets = bytes.fromhex(raw)
                address = ".".join(map(str, octets[::-1])) if len(octets) == 4 else raw
                found.add((address, int(port, 16)))
        return found


@dataclass(frozen=True)
class Network:
    """Hosts that reach each other, by their names."""

    hosts: tuple[Host, ...]
    isolated: bool
    """Whether each host has a network stack of its own."""
    switch: str = ""

    @contextmanager
    def cut(self, host: Host) -> Iterator[None]:
        """Take the cable out of a host for a while: it says nothing more, and hears nothing."""
        port = f"port{self.hosts.index(host)}"
        _ip("-n", self.switch, "link", "set", port, "down")
        try:
            yield
        finally:
            _ip("-n", self.switch, "link", "set", port, "up")


_NAMED = ("unshare", "--uts", "sh", "-c", 'printf %s "$0" >/proc/sys/kernel/hostname; exec "$@"')


@contextmanager
def network(names: Sequence[str], machines: Sequence[str] = ()) -> Iterator[Network]:
    """Yield a network of hosts, which is gone after the block; ``machines`` are their own names."""
    with ExitStack() as undo:
        if not _can_isolate():
            yield Network(
                hosts=tuple(
                    Host(f"127.0.0.{i}", f"127.0.0.{i}", "lo", ()) for i in range(1, len(names) + 1)
                ),
                isolated=False,
            )
            return
        prefix = f"sm{os.getpid()}-{next(_NUMBERS)}"
        switch = _namespace(f"{prefix}-switch", undo)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        table = "127.0.0.1 localhost\n" + "".join(
            f"10.77.0.{i} {name}\n" for i, name in enumerate(names, 1)
        )
        hosts = []
        for i, name in enumerate(names):
            namespace = _namespace(f"{prefix}-{i}", undo)
            _join(namespace, switch, i)
            (_NAMES / namespace).mkdir(parents=True)
            undo.callback(shutil.rmtree, _NAMES / namespace)
            (_NAMES / namespace / "hosts").write_text(table)
            run = ("ip", "netns", "exec", namespace)
            if machines:
                run = (*run, *_NAMED, machines[i])
            hosts.append(Host(name, f"10.77.0.{i + 1}", "eth0", run, namespace))
        yield Network(hosts=tuple(hosts), isolated=True, switch=switch)


def _join(namespace: str, switch: str, number: int) -> None:
    """Plug a host into the switch."""
    _ip("link", "add", f"port{number}", "netns", switch, "type", "veth",
        "peer", "name", "eth0", "netns", namespace)  # fmt: skip
    _ip("-n", switch, "link", "set", f"port{number}", "master", "bridge", "up")
    _ip("-n", namespace, "link", "set", "lo", "up")
    _ip("-n", namespace, "address", "add", f"10.77.0.{number + 1}/24", "dev", "eth0")
    _ip("-n", namespace, "link", "set", "eth0", "up")


def _namespace(name: str, undo: ExitStack) -> str:
    _ip("netns", "add", name)
    undo.callback(_ip, "netns", "delete", name)
    return name


def _can_isolate() -> bool:
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"sm{os.getpid()}-probe"
    try:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "add", "probe0", "type", "veth", "peer", "name", "probe1")
    except subprocess.CalledProcessError:
        return False
    finally:
        subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)
    return True


def _ip(*words: str) -> None:
    subprocess.run(
        ["ip", *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=30
    )

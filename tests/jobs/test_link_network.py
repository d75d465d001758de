"""Which interface and which ports a host takes for a job."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sm_runtime.cluster import network
from sm_runtime.job.errors import LaunchError
from tests import netns

CHOOSE = """
import json, sys
from sm_runtime.job.errors import LaunchError
from sm_runtime.cluster.network import choose
try:
    found = choose(sys.argv[1], sys.argv[3:], sys.argv[2])
    print(json.dumps([found.name, found.address, found.text]))
except LaunchError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def net() -> Iterator[netns.Network]:
    with netns.network(["algo-1", "algo-2"]) as found:
        yield found


def choose(host: netns.Host, configured: str, *peers: str) -> list[str] | str:
    command = [*host.prefix, sys.executable, "-c", CHOOSE, configured, host.name, *peers]
    shown = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd="/")
    found: list[str] | str = json.loads(shown.stdout)
    return found


def test_the_configured_interface_is_taken_where_it_exists(net: netns.Network) -> None:
    host, peer = net.hosts
    text = f"using {host.interface} ({own(net, host)})"
    assert choose(host, host.interface, peer.name) == [host.interface, own(net, host), text]


def own(net: netns.Network, host: netns.Host) -> str:
    """Return what the interface of a host has as its address."""
    return host.address if net.isolated else "127.0.0.1"


@pytest.mark.parametrize("configured", ["ens5", "", "eth0\0", "a-name-that-is-far-too-long"])
def test_else_the_one_that_routes_to_the_others(net: netns.Network, configured: str) -> None:
    host, peer = net.hosts
    configured = configured.replace("\0", "x")
    name, address, text = choose(host, configured, "no-such-host.invalid", peer.name)
    assert (name, address) == (host.interface, own(net, host))
    assert text == f"using {name} ({address}), {configured} not found"


def test_else_the_one_that_the_own_name_stands_for(net: netns.Network) -> None:
    host = net.hosts[0]
    found = choose(host, "ens5", "no-such-host.invalid")
    assert found[0] == "eth0" if net.isolated else found


def test_a_name_that_does_not_resolve_is_a_reason_and_no_error() -> None:
    addresses, cause = network.resolve("no-such-host.invalid")
    assert addresses == ()
    assert cause.startswith("its name does not resolve (")
    assert network.resolve("a" * 300)[0] == ()
    assert network.resolve("127.0.0.9") == (("127.0.0.9",), "")


def test_a_port_that_is_taken_is_left_to_whoever_has_it() -> None:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        one.listen()
        taken = one.getsockname()[1]
        first, second = network.free_ports("127.0.0.1", [taken, taken])
        assert taken < first < second
        other.bind(("", first))  # it is free on all addresses, where the engines listen
        other.listen()
        assert network.free_ports("127.0.0.1", [first])[0] > first


def test_no_port_is_free_beyond_the_last() -> None:
    with socket.socket() as one:
        one.bind(("", 65535))
        one.listen()
        with pytest.raises(LaunchError, match="no TCP port from 65535 on is free"):
            network.free_ports("127.0.0.1", [65535])

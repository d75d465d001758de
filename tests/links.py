"""The links of a job's hosts, all in this process, on addresses of loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from sm_runtime.cluster.agreement import ClusterConfig
from sm_runtime.cluster.link import Link
from sm_runtime.job.failure import Failure
from sm_runtime.job.model import Cluster
from tests.harness import eventually

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
ONE, TWO, THREE = HOSTS
PAIR = (ONE, "localhost")
"""Two hosts, of which the second connects from the address that its name stands for."""
SECRET = b"x" * 32


def config(host: str, hosts: tuple[str, ...] = HOSTS, **more: Any) -> ClusterConfig:
    values: dict[str, Any] = {
        "cluster": Cluster(current_host=host, hosts=hosts),
        "hosts": hosts,
        "secret": SECRET,
        "port": 20000 + os.getpid() % 2000 * 10,
        "wait_seconds": 60.0,
        "beat_seconds": 0.1,
        **more,
    }
    return ClusterConfig(**values)


def failure(host: str, message: str = "m", status: int = 3) -> Failure:
    return Failure(name="X", message=message, phase="train", status=status, host=host)


class Hosts:
    """The links of a job's hosts."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}

    def add(self, found: ClusterConfig) -> Link:
        host = found.current
        link = Link(found, lambda: None, ONE)
        self.links[host] = link
        link.start()
        return link

    def start(self, hosts: tuple[str, ...] = HOSTS, **more: Any) -> list[Link]:
        for host in hosts:
            self.add(config(host, hosts, **more)).ready({"script": 1})
        self.all(lambda link: link.state.start, "all start")
        return list(self.links.values())

    def all(self, condition: Callable[[Link], Any], what: str) -> None:
        eventually(lambda: all(map(condition, self.links.values())), what, 60)

    def failure(self) -> Failure:
        """Return the failure that all hosts know of, which is the same."""
        self.all(lambda link: link.state.failure, "all fail")
        found = {link.state.failure for link in self.links.values()}
        assert len(found) == 1
        failure = found.pop()
        assert failure is not None
        return failure

    def failed_with(self, *parts: str) -> None:
        message = self.failure().message
        assert [part for part in parts if part not in message] == [], message

    def leave(self) -> None:
        for link in self.links.values():
            link.done()
        self.all(lambda link: link.state.finished, "all may leave")

    def close(self) -> None:
        for link in self.links.values():
            link.close(30)
        threads = [link._thread for link in self.links.values() if link._thread]
        assert not [thread for thread in threads if thread.is_alive()]


class Elsewhere:
    """A host in a process of its own, which can be suspended."""

    def __init__(self, found: ClusterConfig) -> None:
        values = {
            "host": found.current, "hosts": found.hosts, "port": found.port,
            "silence_seconds": found.silence_seconds,
        }  # fmt: skip
        code = (
            "import json, sys; from tests.links import *\n"
            "found = json.loads(sys.argv[1])\n"
            "found['hosts'] = tuple(found['hosts'])\n"
            "link = Hosts().add(config(**found)); link.ready({})\n"
            "eventually(lambda: link.state.start, 'it starts', 60); print('started', flush=True)\n"
            "eventually(lambda: link.state.failure, 'it fails', 60)\n"
            "print(link.state.failure.message)\n"
            "link.close()\n"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(values)], stdout=subprocess.PIPE
        )

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode().strip()

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

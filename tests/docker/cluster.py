"""Runs a job on several hosts: containers on a network of their own, each host with its folder."""

from __future__ import annotations

import calendar
import json
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.docker.container import Ml, docker
from tests.harness import eventually

_LINE = re.compile(r"^\[1,mpirank:(\d+),([^]]+)\]<(stdout|stderr)>:(.*)$", re.MULTILINE)


class Host:
    """A container of a cluster, started or not yet."""

    def __init__(self, name: str, container: str, root: Path) -> None:
        self.name, self.container = name, container
        self.ml = Ml(root)

    def log(self) -> str:
        done = subprocess.run(
            ("docker", "logs", self.container),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=True,
        )
        return done.stdout.replace("\r\n", "\n")

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            docker("inspect", "--format", "{{json .State}}", self.container)
        )
        return found

    def ready(self, text: str, seconds: float = 60.0) -> None:
        """Wait until the log holds ``text``."""
        eventually(lambda: text in self.log() or not self.state()["Running"], text, seconds)
        assert text in self.log(), self.log()

    def send(self, signal: str) -> float:
        """Send a signal to the container's first process; return when that was."""
        now = time.time()
        docker("kill", "-s", signal, self.container)
        return now

    def failure(self) -> dict[str, Any]:
        """Return what failure.json holds."""
        found: dict[str, Any] = json.loads(self.ml.read("output/data/failure.json"))
        return found

    @property
    def began(self) -> float:
        """When the container was started, in seconds since 1970."""
        return _seconds(self.state()["StartedAt"])

    @property
    def ended(self) -> float:
        """When the container ended, in seconds since 1970."""
        return _seconds(self.state()["FinishedAt"])


class Cluster:
    """The hosts algo-1, algo-2, ... of one job: ``with Cluster(...) as cluster``.

    As on every platform, a container's own host name is none of the job's. ``code`` are files by
    name, ``train.py`` being the entry point unless the hyperparameters say otherwise.
    """

    def __init__(
        self,
        image: str,
        folder: Path,
        code: str | Mapping[str, str],
        *,
        count: int = 2,
        interface: str = "eth0",
        options: Iterable[str] = (),
        command: tuple[str, ...] = ("train",),
        **hyperparameters: Any,
    ) -> None:
        self._image, self._options, self._command = image, tuple(options), command
        identity = uuid.uuid4().hex[:8]
        self.network = f"sm-runtime-test-{identity}"
        self.folder = folder / identity
        self.folder.mkdir()
        names = [f"algo-{number}" for number in range(1, count + 1)]
        self.hosts = {
            name: Host(name, f"{self.network}-{name}", self.folder / name) for name in names
        }
        files = {"train.py": code} if isinstance(code, str) else code
        values = {"sagemaker_program": "train.py", **hyperparameters}
        for host in self.hosts.values():
            for name, text in files.items():
                host.ml.write(f"code/{name}", text)
            encoded = {key: json.dumps(value) for key, value in values.items()}
            host.ml.write("input/config/hyperparameters.json", encoded)
            resources = {"current_host": host.name, "hosts": names}
            host.ml.write(
                "input/config/resourceconfig.json",
                {**resources, "network_interface_name": interface},
            )
            (host.ml.root / "model").mkdir()
            (host.ml.root / "output/data").mkdir(parents=True)
            for path in (host.ml.root, *host.ml.root.rglob("*")):
                path.chmod(0o777 if path.is_dir() else 0o666)
        docker("network", "create", self.network)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        containers = [host.container for host in self.hosts.values()]
        subprocess.run(("docker", "rm", "-f", "-v", *containers), capture_output=True, check=False)
        docker("network", "rm", self.network)
        shutil.rmtree(self.folder)  # what containers leave may belong to other users

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def start(
        self, *names: str, options: tuple[str, ...] = (), command: tuple[str, ...] = ()
    ) -> None:
        """Start some hosts, or all, at the same time."""

        def begin(name: str) -> None:
            host = self.hosts[name]
            docker(
                *("run", "-d", "--name", host.container, *host.ml.mount),
                *("--network", self.network, "--network-alias", name),
                *(*self._options, *options, self._image, *(command or self._command)),
            )

        with ThreadPoolExecutor() as pool:
            list(pool.map(begin, names or self.hosts))

    def run(self, seconds: float = 100.0) -> set[int]:
        """Start all hosts and wait for all; return the statuses that there are."""
        self.start()
        return self.wait(seconds)

    def wait(self, seconds: float = 100.0) -> set[int]:
        """Wait for every host that was started; return the statuses that there are."""
        listing = docker("ps", "-a", "--filter", f"network={self.network}", "--format={{.Names}}")
        # One that was cut off the network is on none.
        cut = [host.container for host in self.hosts.values() if host.container not in listing]
        names = [*listing.split(), *(name for name in cut if _exists(name))]
        try:
            return {int(line) for line in docker("wait", *names, seconds=seconds).split()}
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not within {seconds} s: the end\n{self.log()}") from None

    def cut(self, name: str) -> float:
        """Cut a host off the network; return when that was."""
        now = time.time()
        docker("network", "disconnect", "-f", self.network, self.hosts[name].container)
        return now

    def log(self) -> str:
        """Return the logs of all hosts, one after another."""
        return "".join(
            f"=== {host.name}\n{host.log()}\n"
            for host in self.hosts.values()
            if _exists(host.container)
        )

    def lines(self, stream: str = "stdout") -> list[tuple[int, str, str]]:
        """Return what the ranks have written: rank, host and line."""
        found = []
        for host in self.hosts.values():
            for rank, name, kind, line in _LINE.findall(host.log()):
                assert name == host.name
                if kind == stream:
                    found.append((int(rank), name, line))
        return found

    def results(self) -> dict[int, dict[str, Any]]:
        """Return the JSON object that each rank has written into a line."""
        return {rank: json.loads(line) for rank, _, line in self.lines() if line.startswith("{")}

    def failures(self) -> list[dict[str, Any]]:
        """Return the failures of all hosts that have one, without the log's last lines."""
        found = [
            host.failure()
            for host in self.hosts.values()
            if host.ml.exists("output/data/failure.json")
        ]
        return [{key: fail[key] for key in fail if key != "last_lines"} for fail in found]

    @property
    def ended(self) -> float:
        """When the last of the containers ended."""
        return max(host.ended for host in self.hosts.values() if _exists(host.container))


def _exists(container: str) -> bool:
    done = subprocess.run(("docker", "inspect", container), capture_output=True, check=False)
    return done.returncode == 0


def _seconds(stamp: str) -> float:
    """Return a time of Docker's, like 2024-05-01T12:00:00.123456789Z."""
    whole, _, fraction = stamp.removesuffix("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float(f"0.{fraction or 0}")

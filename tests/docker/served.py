"""A container that serves: ``docker run -p ... IMAGE serve``, and the example's model."""

from __future__ import annotations

import json
import re
import struct
from functools import cached_property
from gzip import decompress
from pathlib import Path
from typing import Any

from tests.docker.container import Container, Ml, docker, run
from tests.docker.examples import fashion_mnist, place, prepare
from tests.harness import eventually
from tests.serve import Client


class Served(Container, Client):
    """A container that runs ``serve``; ``ask`` goes to its ports as published on this machine."""

    def __init__(self, image: str, *options: str) -> None:
        ports = ("-p", "127.0.0.1::8080", "-p", "127.0.0.1::8501")
        super().__init__(image, "serve", options=(*ports, *options))

    def __enter__(self) -> Served:
        return self

    @cached_property
    def port(self) -> int:  # type: ignore[override]
        return self._published(8080)

    @cached_property
    def rest_port(self) -> int:  # type: ignore[override]
        return self._published(8501)

    def _published(self, port: int) -> int:
        return int(docker("port", self.name, str(port)).splitlines()[0].rpartition(":")[2])

    def without_proxy(self) -> Served:
        """Ask the container itself: Docker's proxy accepts connections that nobody takes."""
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        self.host = docker("inspect", "-f", form, self.name).strip()
        self.port, self.rest_port = 8080, 8501
        return self

    def wait_until_ready(self, seconds: float = 100.0) -> Served:
        eventually(lambda: self.ping() == 200 or not self.state()["Running"], "ready", seconds)
        assert self.ping() == 200, self.log()
        return self

    def processes(self) -> dict[int, str]:
        """Return the command lines in the container, by the numbers they have on this machine."""
        listing = docker("top", self.name, "-eo", "pid,args").splitlines()[1:]
        pairs = (line.split(None, 1) for line in listing)
        return {int(pid): command for pid, command in pairs}

    def workers(self) -> list[int]:
        """The processes that hold the model."""
        return [pid for pid, line in self.processes().items() if "serving.worker" in line]

    def inside(self, *command: str) -> str:
        """Return what a command prints that runs in the container."""
        return docker("exec", self.name, *command)


def train_fashion_mnist(image: str, folder: Path) -> Ml:
    """Run the example's job, an epoch of it, and return its folders."""
    ml = Ml(folder)
    hyperparameters = place("fashion_mnist", ml)
    prepare(image, "fashion_mnist", ml.root / "input/data")
    ml.write("input/config/hyperparameters.json", {**hyperparameters, "epochs": "1"})
    result = run(image, options=(*ml.mount, "--network", "none"), seconds=300)
    assert result.status == 0, result.err
    return ml


def images(count: int) -> Any:
    """Return images of the validation set, nested lists of 28 x 28 x 1 numbers."""
    data = decompress((fashion_mnist() / "t10k-images-idx3-ubyte.gz").read_bytes())
    pixels = struct.unpack_from(f"{count * 784}B", data, 16)
    rows = [[[value] for value in pixels[at : at + 28]] for at in range(0, count * 784, 28)]
    return [rows[at : at + 28] for at in range(0, len(rows), 28)]


def labels(count: int) -> list[int]:
    """Return what those images show."""
    data = decompress((fashion_mnist() / "t10k-labels-idx1-ubyte.gz").read_bytes())
    return list(data[8 : 8 + count])


def best(predictions: list[list[float]]) -> list[int]:
    """Return the class of each answer."""
    return [row.index(max(row)) for row in predictions]


def accuracy(body: bytes) -> float:
    """Return how many of the first images an answer in JSON recognises, from 0 to 1."""
    found = best(json.loads(body)["predictions"])
    return sum(map(int.__eq__, found, labels(len(found)))) / len(found)


def last_line(log: str) -> str:
    """Return the log's last line without its time."""
    return re.sub(r"^\S+ \S+ ", "", log.rstrip().splitlines()[-1])

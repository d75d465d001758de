"""Runs images on folders that a test describes: what ``docker run`` prints, returns and leaves."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness import eventually

ROOT = Path(__file__).resolve().parents[2]
USUAL = "2.15"
SET = os.environ.get("IMAGE_SET", USUAL)
"""The set of versions that the images hold: ``scripts/docker test SET`` says it."""
LOCKED: dict[str, str] = dict(
    re.findall(
        r"^([a-z0-9-]+)==(\S+)",
        (ROOT / f"docker/requirements-cpu-{SET}.txt").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
)
"""The versions of the set's Python packages, by name."""


def tag(name: str) -> str:
    """Return the tag of an image with the set's versions."""
    return f"sm-runtime:{name}" if SET == USUAL else f"sm-runtime:{name}-{SET}"


def docker(*arguments: str, seconds: float = 300.0, text: str = "") -> str:
    """Run a docker command that has to succeed and return its output; ``text`` is its input."""
    done = subprocess.run(
        ("docker", *arguments),
        input=text,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout


def host_address() -> str:
    """Return the address of this machine that containers of any network reach."""
    config = json.loads(docker("network", "inspect", "bridge"))[0]["IPAM"]["Config"][0]
    # Not every version tells the gateway of this network: it is the first address.
    return config.get("Gateway") or str(ipaddress.ip_network(config["Subnet"])[1])


@contextmanager
def derived(image: str, folder: Path, instructions: str) -> Iterator[str]:
    """Yield the name of an image built upon ``image``, with ``folder`` as the context."""
    name = f"sm-runtime-test:{uuid.uuid4().hex[:12]}"
    (folder / "Dockerfile").write_text(f"FROM {image}\n{instructions}", encoding="utf-8")
    docker("build", "-t", name, str(folder))
    yield name
    docker("rmi", "-f", name)


def scripts_docker(command: str, *options: str, **environ: str) -> str:
    """Run scripts/docker for the set, which has to succeed, and return what it printed."""
    done = subprocess.run(
        ("scripts/docker", command, SET, *options),
        env={**os.environ, **environ},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@dataclass(frozen=True)
class Result:
    """How a container ended."""

    status: int
    out: str
    err: str


class Ml:
    """A folder of the caller that becomes /opt/ml."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir()

    def write(self, name: str, content: str | bytes | Any) -> Path:
        """Write a file: text, bytes, or anything else as JSON."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")
        return path

    def read(self, name: str) -> str:
        return (self.root / name).read_text(encoding="utf-8")

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    @property
    def mount(self) -> tuple[str, str]:
        return "-v", f"{self.root}:/opt/ml"


def run(image: str, *command: str, options: tuple[str, ...] = (), seconds: float = 100.0) -> Result:
    """``docker run --rm OPTIONS IMAGE COMMAND``."""
    done = subprocess.run(
        ("docker", "run", "--rm", *options, image, *command),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds,
        check=False,
    )
    out, err = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
    return Result(done.returncode, out, err)


class Container:
    """A container that stays until the test's end: ``with Container(...) as container``."""

    def __init__(self, image: str, *command: str, options: tuple[str, ...] = ()) -> None:
        self.name = f"sm-runtime-test-{uuid.uuid4().hex[:12]}"
        docker("run", "-d", "--name", self.name, *options, image, *command)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        docker("rm", "-f", "-v", self.name)

    def log(self) -> str:
        done = subprocess.run(
            ("docker", "logs", self.name),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=True,
        )
        return done.stdout

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(
            docker("inspect", "--format", "{{json .State}}", self.name)
        )
        return state

    def ready(self, text: str = "ready") -> None:
        """Wait until the log holds ``text``."""
        eventually(lambda: text in self.log() or not self.state()["Running"], text, 60)
        assert text in self.log(), self.log()

    def wait(self) -> int:
        return int(docker("wait", self.name, seconds=100))

    def stop(self, grace_seconds: int) -> int:
        """``docker stop``, and the status that the container ended with."""
        docker("stop", "-t", str(grace_seconds), self.name, seconds=100)
        return self.wait()

    def changes(self) -> list[str]:
        """Return the paths that differ from the image's, mounts left out."""
        return [line.split(" ", 1)[1] for line in docker("diff", self.name).splitlines()]

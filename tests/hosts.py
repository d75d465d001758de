"""Jobs of several hosts, each a process with a base folder and a network of its own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import netns
from tests.harness import Base, Result, Running, eventually

GROUP_HOSTS = ("algo-1", "algo-2", "algo-3")
GROUPS = [
    {"InstanceGroupName": "readers", "InstanceType": "ml.c5.large", "InstanceCount": 2},
    {"InstanceGroupName": "trainers", "InstanceType": "ml.g5.large", "InstanceCount": 1},
]
SECRET = "a secret of this test's cluster"
HELLO = """
import os
print("ready", os.environ["SM_CURRENT_HOST"], flush=True)
open(os.path.join(os.environ["SM_MODEL_DIR"], "model-" + os.environ["SM_CURRENT_HOST"]), "w")
"""
WAITS = """
import os, signal, sys
def save(number, frame):
    open(os.path.join(os.environ["SM_MODEL_DIR"], "saved"), "w")
    sys.exit(int(os.environ.get("SM_HP_STATUS", "0")))
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True:
    signal.pause()
"""

FAILS_WHEN_TOLD = """
import os, time
print("began", time.time(), flush=True)
if os.environ["SM_CURRENT_HOST"] == os.environ["FAILING_HOST"]:
    open(os.environ["FIFO"]).read()
    print("failed", time.time(), flush=True)
    raise SystemExit(3)
time.sleep(600)
"""
TENSORFLOW = """
import time
class Server:
    def __init__(self, *words, **more): pass
    def join(self): time.sleep(600)
class distribute: Server = Server
class compat:
    class v1: ConfigProto = dict
"""
"""In TensorFlow's place for parameter servers, of which each would need 400 MB."""
LAYOUTS = {
    "parameter servers": "sagemaker_parameter_server_enabled",
    "MPI": "sagemaker_mpi_enabled",
}


class Cluster:
    """The hosts of one job; ``start`` starts their runtimes, or some of them."""

    def __init__(
        self, root: Path, network: netns.Network, hosts: Sequence[netns.Host] = ()
    ) -> None:
        self.network, self.hosts = network, hosts or network.hosts
        names = [host.name for host in self.hosts]
        self.bases = [Base(root / name / "ml") for name in names]
        self.running: dict[int, Running] = {}
        self.marker = f"SM_TEST_MARK={root}"
        self._fifo = root / "fifo"
        for host, base in zip(self.hosts, self.bases, strict=True):
            base.write(
                "input/config/resourceconfig.json",
                {
                    "current_host": host.name,
                    "hosts": names,
                    "network_interface_name": host.interface,
                },
            )
            base.environ |= {
                "SM_RUNTIME_LAUNCHER": json.dumps(["{python}", "{script}", "{args}"]),
                "SM_RUNTIME_CLUSTER_SECRET": SECRET,
                "SM_TEST_MARK": str(root),
            }

    def script(self, text: str, **environ: str) -> Cluster:
        for base in self.bases:
            base.script(text)
            base.environ |= environ
        return self

    def lay_out(self, layout: str) -> Cluster:
        """Make it a job of ``LAYOUTS``, whose script on the last host fails after ``fail``."""
        os.mkfifo(self._fifo)
        self.script(FAILS_WHEN_TOLD, FIFO=str(self._fifo), FAILING_HOST=self.hosts[-1].name)
        for base in self.bases:
            base.write("code/tensorflow.py", TENSORFLOW)
            base.hyperparameters(**{LAYOUTS[layout]: "true"})
            base.environ["SM_RUNTIME_LAUNCHER"] = ""
        return self

    def fail(self) -> None:
        """Have the script of the last host fail, which has begun."""
        with open(self._fifo, "w"):
            pass

    def times(self, what: str) -> list[float]:
        """Return the times that scripts have printed behind a word."""
        pattern = re.compile(rb"%s (\d+\.\d+)\n" % what.encode())
        outputs = [bytes(running.out) for running in self.running.values()]
        return [float(time) for output in outputs for time in pattern.findall(output)]

    def start(self, *numbers: int, **environ: str) -> Cluster:
        for number in numbers or range(len(self.hosts)):
            host, base = self.hosts[number], self.bases[number]
            self.running[number] = base.start(prefix=host.prefix, **environ)
        return self

    def ready(self) -> Cluster:
        for running in self.running.values():
            eventually(lambda r=running: b"ready" in r.out or r.process.poll() is not None, "r", 60)
            assert b"ready" in running.out, running.err.decode()
        return self

    def wait(self) -> list[Result]:
        return [self.running[number].wait(60) for number in sorted(self.running)]

    def failures(self, *numbers: int) -> Any:
        """Return what the hosts' failure.json says, which is the same on all."""
        found = [self.bases[n].failure_json() for n in numbers or range(len(self.hosts))]
        assert all(one == found[0] for one in found), found
        return found[0]

    def left(self) -> list[str]:
        """Return the command lines of the job's living processes."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if self.marker.encode() in (entry / "environ").read_bytes():
                        found.append((entry / "cmdline").read_text())
                except OSError:
                    continue
        return found

    def close(self) -> None:
        for running in self.running.values():
            if running.process.poll() is None:
                running.process.kill()
                running.wait()


@contextmanager
def cluster(root: Path, network: netns.Network, count: int | None = None) -> Iterator[Cluster]:
    """Yield the first hosts of a network as a cluster, which leaves no process behind."""
    made = Cluster(root, network, network.hosts[:count])
    try:
        yield made
    finally:
        made.close()
    eventually(lambda: not made.left(), "no process is left", 30)


def statuses(results: Sequence[Result]) -> list[int]:
    return [result.status for result in results]


def logs(results: Sequence[Result]) -> str:
    return "\n".join(result.log for result in results)


def bases_of_groups(tmp_path: Path, script: str = "", **more: Any) -> list[Base]:
    """Return a base folder for each host of a job with instance groups."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").write_text("1")
    source = {"S3Uri": (tmp_path / "data").as_uri(), "InstanceGroupNames": ["readers"]}
    job = {
        "TrainingJobName": "j",
        "InputDataConfig": [{"ChannelName": "raw", "DataSource": {"S3DataSource": source}}],
        "OutputDataConfig": {"S3OutputPath": (tmp_path / "out").as_uri()},
        "ResourceConfig": {"InstanceGroups": GROUPS},
        **more,
    }
    made = []
    for host in GROUP_HOSTS:
        base = Base(tmp_path / host)
        base.script(script).write("input/config/job.json", job)
        base.environ["SM_RUNTIME_CURRENT_HOST"] = host
        made.append(base)
    return made

"""MPI jobs with a real mpirun: the components of Open MPI that are used, and the hosts' names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import netns
from tests.harness import Base, Result
from tests.hosts import Cluster, cluster, logs, statuses

pytestmark = pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs Open MPI")

DEBIANS = "mtl = ^ofi\nbtl = ^uct,openib,ofi\npml = ^ucx\nosc = ^ucx,pt2pt\n"
"""The lines of Debian's own parameter file that name components."""
SHOWS = """
import json, os, re
from mpi4py import MPI
world = MPI.COMM_WORLD
total = world.allreduce(world.rank)
with open("/proc/self/maps") as maps:
    components = sorted(set(re.findall(r"/mca_((?:btl|mtl|pml)_\\w+)\\.so", maps.read())))
names = ("btl", "pml", "btl_tcp_if_include", "oob_tcp_if_include",
    "btl_vader_single_copy_mechanism")
variables = {name: os.environ.get("OMPI_MCA_" + name) for name in names}
print(json.dumps({"rank": world.rank, "size": world.size, "total": total, "set": variables,
    "host": os.environ.get("SM_CURRENT_HOST"), "components": components}), flush=True)
"""
SHOWS_VARIABLES = """
import json, os
print(json.dumps({"rank": os.environ["OMPI_COMM_WORLD_RANK"], "size": 2,
    "set": {"btl": os.environ.get("OMPI_MCA_btl")}}))
"""
RANK = """
import os
print("rank", os.environ["OMPI_COMM_WORLD_RANK"], "on", os.environ["SM_CURRENT_HOST"], flush=True)
"""


def mpi(base: Base, each: int = 2, options: str = "") -> Base:
    return base.hyperparameters(
        sagemaker_mpi_enabled="true",
        sagemaker_mpi_num_of_processes_per_host=str(each),
        sagemaker_mpi_custom_mpi_options=options,
        sagemaker_program="train.py",
    )


def shown(result: Result) -> list[dict[str, Any]]:
    """Return what the ranks of SHOWS say, in their order."""
    lines = [line[line.index("{") :] for line in result.out.decode().splitlines() if "{" in line]
    return sorted(map(json.loads, lines), key=lambda said: int(said["rank"]))


# -- one host --------------------------------------------------------------------------------


@pytest.fixture
def alone(base: Base, tmp_path: Path) -> Base:
    """Two ranks on one host, whose Open MPI has an empty folder for its configuration."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "home").mkdir()
    base.environ |= {"OPAL_SYSCONFDIR": str(tmp_path / "etc"), "HOME": str(tmp_path / "home")}
    return mpi(base.script(SHOWS))


def configure(folder: Path, text: str, name: str = "openmpi-mca-params.conf") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def run(base: Base, **environ: str) -> list[dict[str, Any]]:
    result = base.run(**environ)
    assert result.status == 0, result.log
    ranks = shown(result)
    assert [(said["rank"], said["size"], said["total"]) for said in ranks] == [(0, 2, 1), (1, 2, 1)]
    assert ranks[0]["components"] == ranks[1]["components"]
    return ranks


def test_ranks_load_the_components_that_they_load_under_a_plain_mpirun(
    alone: Base, tmp_path: Path
) -> None:
    configure(tmp_path / "etc", DEBIANS)
    plain = subprocess.run(
        (
            "mpirun",
            "--allow-run-as-root",
            "--oversubscribe",
            "-np",
            "2",
            sys.executable,
            "train.py",
        ),
        env=alone.environ,
        cwd=alone.path("code"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=True,
    )
    expected = shown(Result(0, plain.stdout, plain.stderr, 0.0))[0]["components"]
    found = run(alone)[0]
    assert found["components"] == expected
    assert "pml_ob1" in expected and "btl_ofi" not in expected
    assert found["set"]["btl"] is found["set"]["pml"] is None


def test_where_nothing_is_said_the_defaults_are_those_of_the_toolkit(alone: Base) -> None:
    for said in run(alone):
        found = said["set"]
        assert (found["pml"], found["btl"]) == ("ob1", "^openib")
        assert found["btl_vader_single_copy_mechanism"] == "none"
        assert "btl_openib" not in said["components"] and "pml_ob1" in said["components"]


LIST = "btl = self,vader\npml = ob1\n"
PLACES = ("site", "user", "override", "environment", "option", "-am", "-tune", "another file")


@pytest.mark.parametrize("place", PLACES)
def test_a_list_of_components_stays_wherever_it_is_from(
    alone: Base, tmp_path: Path, place: str
) -> None:
    environ, options = {}, ""
    if place == "site":
        configure(tmp_path / "etc", f"# of the site\n{LIST}")
    elif place == "user":
        configure(tmp_path / "home/.openmpi", LIST, "mca-params.conf")
    elif place == "override":
        configure(tmp_path / "etc", LIST, "openmpi-mca-params-override.conf")
    elif place == "environment":
        environ = {"OMPI_MCA_btl": "self,vader", "OMPI_MCA_pml": "ob1"}
    elif place == "option":
        options = "-mca btl self,vader --mca pml ob1"
    elif place == "another file":
        environ = {"OMPI_MCA_mca_base_param_files": str(configure(tmp_path, LIST))}
    else:
        configure(alone.path("code"), LIST, "mine.conf")
        options = f"-mca pml ob1 {place} mine.conf"  # found from where mpirun runs
    ranks = run(mpi(alone, options=options), **environ)
    in_environment = place in ("environment", "option")
    assert ranks[1]["set"]["btl"] == ("self,vader" if in_environment else None)
    if place != "-am":  # Open MPI 4.1.4 does not find the file, under a plain mpirun as well
        found = [name for name in ranks[0]["components"] if name.startswith("btl_")]
        assert found == ["btl_self", "btl_vader"]


def test_a_list_in_a_file_counts_less_than_an_option(alone: Base, tmp_path: Path) -> None:
    configure(tmp_path / "etc", "btl = self,tcp\n")
    said = run(mpi(alone, options="-mca btl self,vader"))[0]
    assert "btl_tcp" not in said["components"]


@pytest.mark.parametrize("ompi_info", ["missing", "failing"])
def test_the_usual_files_are_read_where_open_mpi_cannot_be_asked_for_others(
    alone: Base, tmp_path: Path, ompi_info: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("mpirun", "orted"):
        found = shutil.which(name)
        assert found
        (programs / name).symlink_to(os.path.realpath(found))
    if ompi_info == "failing":
        (programs / "ompi_info").write_text("#!/bin/sh\nexit 3\n")
        (programs / "ompi_info").chmod(0o755)
    configure(tmp_path / "home/.openmpi", LIST, "mca-params.conf")
    result = alone.run(
        PATH=f"{programs}:/usr/bin:/bin" if ompi_info == "failing" else str(programs)
    )
    assert result.status == 0, result.log
    assert {said["set"]["btl"] for said in shown(result)} == {None}
    warned = "does not tell where Open MPI's parameter files are" in result.log
    assert warned == (ompi_info == "failing")


def test_a_file_cannot_break_the_launch(alone: Base, tmp_path: Path) -> None:
    configure(tmp_path / "etc", "plm_rsh_args = -p 2222\n")
    result = alone.run()
    assert result.status == 0, result.log
    line = "Open MPI's files: plm_rsh_args is left out: hosts are reached over the runtime's own"
    assert result.log.count(line) == 1


def test_the_launch_is_shown_as_it_would_be(alone: Base, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "sm_runtime", "env", "--launch")
    assert b"-mca btl '^openib'" in alone.run(command=command).out
    configure(tmp_path / "etc", DEBIANS)
    shown = alone.run(command=command).out
    assert b"-mca btl " not in shown and b"-mca pml " not in shown
    assert b"-mca orte_abort_on_non_zero_status 1" in shown


# -- several hosts ---------------------------------------------------------------------------


@contextmanager
def hosts(
    root: Path,
    names: Sequence[str],
    machines: Sequence[str] = (),
    *,
    each: int = 1,
    options: str = "",
) -> Iterator[Cluster]:
    """Yield hosts of these names; ``machines`` are what ``gethostname`` gives there."""
    with netns.network(names, machines or names) as network:
        if not network.isolated:
            pytest.skip("needs network namespaces")
        with cluster(root, network) as made:
            for number, base in enumerate(made.bases):
                mpi(base, each, options)
                etc = root / f"etc-{number}"
                etc.mkdir()
                base.environ |= {
                    "SM_RUNTIME_LAUNCHER": "",
                    "OPAL_SYSCONFDIR": str(etc),
                    "HOME": str(root),
                }
            yield made


def finished(made: Cluster) -> list[Result]:
    results = made.start().wait()
    assert statuses(results) == [0] * len(made.hosts), logs(results)
    return results


OWN = [
    # what the files of each host set, and what the ranks of each have in their environment
    (("", ""), "btl", ("^openib", "^openib")),
    (("btl = self,tcp", ""), "btl", (None, "^openib")),
    (("", "btl = self,tcp"), "btl", ("^openib", None)),
    (("btl = self,tcp", "btl = tcp,self"), "btl", (None, None)),
    # Open MPI takes one of the two lists of interfaces, and fails with both.
    (("btl_tcp_if_exclude = lo", ""), "btl_tcp_if_include", (None, "eth0")),
    (("", "btl_tcp_if_exclude = lo"), "btl_tcp_if_include", ("eth0", None)),
    (("oob_tcp_if_exclude = lo", ""), "oob_tcp_if_include", (None, "eth0")),
    (("", "oob_tcp_if_exclude = lo"), "oob_tcp_if_include", ("eth0", None)),
]


@pytest.mark.parametrize(("files", "parameter", "expected"), OWN, ids=lambda value: str(value))
def test_each_host_follows_its_own_files(
    tmp_path: Path,
    files: tuple[str, str],
    parameter: str,
    expected: tuple[str | None, str | None],
) -> None:
    # Hosts with other transports than each other cannot talk: of these, the variables are shown.
    text = SHOWS if parameter != "btl" else SHOWS_VARIABLES
    with hosts(tmp_path, ["algo-1", "algo-2"]) as made:
        for number, lines in enumerate(files):
            configure(tmp_path / f"etc-{number}", f"mtl = ^ofi\n{lines}\n")
        results = finished(made.script(text))
    ranks = [said for result in results for said in shown(result)]
    assert [said["size"] for said in ranks] == [2, 2]
    assert tuple(said["set"][parameter] for said in ranks) == expected


LONG = "a-name-that-somebody-has-put-together-of-all-that-the-job-does"
NAMES = [
    ["my_trainer_1", "my_trainer_2"],
    ["algo-1", "my_trainer_2"],
    ["my_trainer_1", "algo-2"],
    ["_a", "_b"],
    ["jobs.my_cluster.a", "jobs.my_cluster.b"],
    ["1st", "2nd"],
    ["Trainer-A", "TRAINER-B"],
    ["-a", "b-"],
    [f"{LONG[:48]}-1", f"{LONG[:48]}-2"],
    [f"{LONG[:49]}-1", f"{LONG[:49]}-2"],
    [f"{LONG[:61]}-1", f"{LONG[:61]}-2"],
    [f"{LONG}.{LONG}.a1", f"{LONG}.{LONG}.a2"],
    ["3f2a1bc09d7e", "9d7e3f2a1bc0"],
    ["a+b", "+n1"],
    ["a:1", "a@2"],
]


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0][:30])
def test_hosts_may_have_any_name_that_resolves(tmp_path: Path, names: list[str]) -> None:
    machines = [name[:63] for name in names]
    with hosts(tmp_path, names, machines, each=2) as made:
        results = finished(made.script(RANK))
    lines = [line for result in results for line in result.out.decode().splitlines()]
    for rank in range(4):
        name = names[rank // 2]
        (line,) = (line for line in lines if f"rank {rank} on" in line)
        assert line.startswith(f"[1,mpirank:{rank},{name}]<stdout>")
        assert line.endswith(f"rank {rank} on {name}")


@pytest.mark.parametrize("machine", ["my_trainer_1", LONG, "a_b.example", f"{LONG[:61]}_0"])
@pytest.mark.parametrize("count", [1, 2])
def test_machines_may_have_other_names_than_the_hosts(
    tmp_path: Path, machine: str, count: int
) -> None:
    names = ["algo-1", "algo-2"][:count]
    with hosts(tmp_path, names, [machine] * count) as made:
        results = finished(made.script(SHOWS))
    ranks = [said for result in results for said in shown(result)]
    assert [said["size"] for said in ranks] == [count] * count


def test_one_host_may_have_any_name(tmp_path: Path) -> None:
    with hosts(tmp_path, ["my_trainer_1"], each=2) as made:
        (result,) = finished(made.script(SHOWS))
    assert [said["total"] for said in shown(result)] == [1, 1]
    assert b"[1,mpirank:1,my_trainer_1]<stdout>" in result.out


@pytest.mark.parametrize("option", ["--host", "-H"])
def test_a_users_slots_are_those_of_the_hosts_that_the_user_names(
    tmp_path: Path, option: str
) -> None:
    names = ["my_trainer_1", "my_trainer_2"]
    options = f"{option} my_trainer_1,my_trainer_2:2"
    with hosts(tmp_path, names, options=options) as made:
        results = finished(made.script(SHOWS))
    found = {said["rank"]: said["host"] for result in results for said in shown(result)}
    assert found == {0: "my_trainer_1", 1: "my_trainer_2", 2: "my_trainer_2"}
    assert f"{option} 10.77.0.1,10.77.0.2:2 " in results[0].log
    assert "10.77.0.1 for my_trainer_1, 10.77.0.2 for my_trainer_2" in results[0].log


def test_a_failure_names_the_host_as_the_user_does(tmp_path: Path) -> None:
    text = RANK + "if os.environ['OMPI_COMM_WORLD_RANK'] == '1': os._exit(3)\n"
    text += "import signal\nsignal.pause()\n"
    with hosts(tmp_path, ["my_trainer_1", "my_trainer_2"]) as made:
        results = made.script(text).start().wait()
        found = made.failures()
    assert statuses(results) == [3, 3], logs(results)
    assert (found["rank"], found["host"], found["exit"]) == (1, "my_trainer_2", 3)


def test_a_daemon_that_does_not_come_is_one_of_a_host_that_the_user_knows(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "orted").write_text("#!/bin/sh\nexec sleep 600\n")
    (programs / "orted").chmod(0o755)
    with hosts(tmp_path, ["my_trainer_1", "my_trainer_2"]) as made:
        made.bases[1].environ["PATH"] = f"{programs}:{os.environ['PATH']}"
        results = made.script(RANK).start(SM_RUNTIME_PEER_WAIT_SECONDS="3").wait()
        message = made.failures()["message"]
    assert set(statuses(results)) == {1}, logs(results)
    assert "waiting for Open MPI's daemons on my_trainer_2" in message

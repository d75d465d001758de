"""Ranks, and the launcher that brings them together: histories of what it asks for."""

from __future__ import annotations

import dataclasses
from signal import SIGTERM
from typing import Any

import pytest

from sm_runtime.cluster.agreement import Priority
from sm_runtime.cluster.host import HostPolicy
from sm_runtime.cluster.mpi import OpenMpi, OpenMpiSettings
from sm_runtime.cluster.ranks import Launcher, RankProcesses
from sm_runtime.job.failure import Failure
from sm_runtime.launch.open_mpi import HostParameters
from sm_runtime.processes.stop import StopPolicy
from sm_runtime.processes.workload import (
    Answer,
    Ask,
    Disconnected,
    Drain,
    Drained,
    Exited,
    Requested,
    Send,
    Signalled,
    Vanished,
)
from tests.histories import SCRIPT, History, Link, ended

MPIRUN = dataclasses.replace(SCRIPT, name="mpirun")
HOSTS = ("algo-1", "algo-2")
ABORTED = b"MPI_ABORT was invoked on rank 3 in communicator MPI_COMM_WORLD\nwith errorcode 7.\n"
IMPROPER = b"mpirun has exited due to process rank 1 with PID 0 on\nnode x exiting improperly. No\n"
PARAGRAPH = b"-" * 60 + b"\nThere are not enough slots on inet-2:\nfour.\n\nmore\n" + b"-" * 60


LOST = Failure(name="X", message="m", phase="train", status=1, host="algo-2")


class Ranks(History):
    """The ranks of one of two hosts, two on each."""

    def __init__(self, host: str = "algo-1", **policy: Any) -> None:
        self.link = Link(host)
        is_leader = host == "algo-1"
        settings = OpenMpiSettings(
            files={}, names={"algo-1": "algo-1", "algo-2": "inet-2"}, host=HostParameters()
        )
        launcher = OpenMpi(
            settings, host=host, hosts=HOSTS, expected=2, rank_variables={"R": host}, variables={}
        )
        stop = StopPolicy(grace_seconds=10, **policy)
        self.ranks = RankProcesses(
            self.link,
            HostPolicy(host=host, stop=stop, mask=str),
            launcher=launcher,
            script=SCRIPT,
            command=MPIRUN if is_leader else None,
        )
        super().__init__(self.ranks)

    def rank(self, number: int, connection: int, after: float = 1) -> int:
        """Have the launcher start a rank; return the key of its process."""
        variables = (f"OMPI_COMM_WORLD_RANK={number}".encode(), b"TMPDIR=/launcher")
        self.at(after, Requested(connection, (b"rank", b"0,1", *variables)))
        return self.started[-1].key


def test_a_rank_is_a_child_of_its_hosts_runtime() -> None:
    host = Ranks()
    host.rank(1, connection=7)
    start = host.started[-1]
    assert start.command.argv == SCRIPT.argv
    assert start.command.env == {"OMPI_COMM_WORLD_RANK": "1", "PWD": SCRIPT.cwd, "R": "algo-1"}
    assert start.command.name == "rank 1"
    assert start.cpus == {0, 1}
    assert start.prefixes == (
        b"[1,mpirank:1,algo-1]<stdout>:",
        b"[1,mpirank:1,algo-1]<stderr>:",
    )


def test_a_rank_that_ends_well_lets_its_stub_end_and_then_the_launcher_does() -> None:
    host = Ranks()
    keys = [host.rank(number, connection=number) for number in (0, 1)]
    for connection, key in enumerate(keys):
        assert host.at(2, Exited(key, 0)) == [Send(key, SIGTERM), Answer(connection, 0)]
    assert host.link.reports == []
    assert host.at(3, Exited(0, 0)) == [Drain(0)]
    host.at(3, Drained(0, ended(0)))
    assert host.link.reports == [("finished", True)]
    host.link.state.training_done = True
    host.at(4)
    assert not host.is_done, "the stubs have their answer and live"
    host.at(4, Disconnected(0), Disconnected(1))
    assert host.is_done


def test_a_host_without_the_launcher_is_done_when_its_ranks_are() -> None:
    host = Ranks("algo-2")
    keys = [host.rank(number, connection=number) for number in (2, 3)]
    assert host.link.reports == [("algo-1", {"do": "began"})]
    host.at(2, Exited(keys[0], 0))
    assert len(host.link.reports) == 1
    host.at(2, Exited(keys[1], 0))
    assert host.link.reports[1:] == [("finished", True)]


def test_the_failure_of_a_rank_names_it_and_its_stub_ends_with_the_job() -> None:
    host = Ranks()
    key = host.rank(1, connection=7)
    host.at(2, Exited(key, 3))
    host.at(2, Drained(key, ended(3, tail=b"KeyError: 'x'\n")))
    assert [(report[1], report[2]) for report in host.link.reports] == [(1, Priority.FAILED)]
    host.link.state.failure = LOST
    assert Answer(7, 1) in host.at(3)


def test_a_launcher_that_ends_well_before_any_rank_has_begun_has_failed() -> None:
    for tail, said in ((b"", "mpirun ended before any rank began"), (PARAGRAPH, SAID[-1][2])):
        host = Ranks()
        host.at(1, Exited(0, 0))
        host.at(1, Drained(0, ended(0, tail=tail)))
        [(message, _, priority)] = host.link.reports
        assert (message, priority) == (said, Priority.SERVICE)


def test_a_rank_whose_stub_was_ended_is_ended_and_the_launcher_is_blamed() -> None:
    host = Ranks()
    key = host.rank(1, connection=7)
    assert host.at(2, Disconnected(7)) == [Ask(key=key, number=SIGTERM)]
    host.at(2, Exited(key, -15), Vanished(key))
    host.at(3, Exited(0, 0))
    host.at(3, Drained(0, ended(0)))
    [(message, rank, priority)] = host.link.reports
    assert message == "mpirun ended the rank, for a reason that it does not give"
    assert (rank, priority) == (1, Priority.SERVICE)


SAID = [
    (0, ABORTED, "called MPI_Abort with error code 7", 3, "algo-2"),
    (7, ABORTED, "called MPI_Abort with error code 7", 3, "algo-2"),
    (1, IMPROPER, "ended without MPI_Finalize, though the others are not done", 1, "algo-1"),
    (1, PARAGRAPH, "mpirun: There are not enough slots on algo-2: four.", None, "algo-1"),
]


@pytest.mark.parametrize("status, tail, message, rank, where", SAID)
def test_mpirun_explains_itself(
    status: int, tail: bytes, message: str, rank: int | None, where: str
) -> None:
    host = Ranks()
    host.rank(0, connection=0)
    host.at(2, Exited(0, status))
    host.at(2, Drained(0, ended(status, tail=tail)))
    assert host.link.reports == [(message, rank, Priority.SERVICE)]


def test_a_daemon_is_started_where_mpirun_wants_it_and_its_agent_ends_with_it() -> None:
    leader, other = Ranks(), Ranks("algo-2")
    assert leader.at(1, Requested(4, (b"agent", b"inet-2", b"orted", b"-mca", b"'a b'"))) == []
    launch = {"do": "launch", "id": 1, "words": ["orted", "-mca", "'a b'"]}
    assert leader.link.reports == [("algo-2", launch)]
    other.link.state.inbox.append(launch)
    other.at(1)
    assert other.started[-1].command.argv == ("orted", "-mca", "a b")
    key = other.started[-1].key
    other.at(2, Exited(key, 0))
    said = {"do": "exited", "id": 1, "status": 0}
    assert other.link.reports[0] == ("algo-1", said)
    leader.link.state.inbox.append(said)
    assert leader.at(2) == [Answer(4, 0)]


def test_nothing_but_its_daemon_is_started_for_the_leader() -> None:
    other = Ranks("algo-2")
    other.link.state.inbox.append({"do": "launch", "id": 1, "words": ["rm", "-r", "/"]})
    assert other.at(1) == []
    assert other.link.reports == [("algo-1", {"do": "exited", "id": 1, "status": 126})]


@pytest.mark.parametrize("words", [(b"agent", b"algo-9", b"orted"), (b"else",), (b"agent",)])
def test_what_else_is_asked_for_is_refused(words: tuple[bytes, ...]) -> None:
    assert Ranks().at(1, Requested(4, words)) == [Answer(4, 1)]


def test_an_agent_that_is_gone_is_not_waited_for() -> None:
    leader = Ranks()
    leader.at(1, Requested(4, (b"agent", b"inet-2", b"orted")))
    leader.at(2, Disconnected(4))
    leader.link.state.inbox.append({"do": "exited", "id": 1, "status": 0})
    assert leader.at(3) == []


def test_ranks_that_never_begin_are_a_failure_of_the_launch(caplog: Any) -> None:
    caplog.set_level("INFO", "sm_runtime")
    host = Ranks()
    host.at(1, Requested(4, (b"agent", b"inet-2", b"orted")))
    assert host.next_time() == 2
    host.at(10)
    assert "waiting for Open MPI's daemons on algo-2 (10 s / 60 s)" in caplog.text
    host.at(60)
    [_, (message, _, priority)] = host.link.reports
    text = "no rank has begun in 60 s of waiting for Open MPI's daemons on algo-2"
    assert (message, priority) == (text, Priority.SERVICE)


def test_the_longest_run_counts_while_no_rank_has_begun() -> None:
    host = Ranks(max_seconds=30)
    host.at(30)
    assert host.link.reports == [("stopped", "MaxRuntimeInSeconds (30 s)"), ("finished", False)]


def test_a_rank_that_comes_after_a_stop_is_refused() -> None:
    host = Ranks()
    host.at(1, Signalled(SIGTERM))
    count = len(host.started)
    variables = b"OMPI_COMM_WORLD_RANK=0"
    assert host.at(2, Requested(7, (b"rank", b"0", variables))) == [Answer(7, 1)]
    assert len(host.started) == count


def test_torchrun_marks_no_lines_and_starts_no_daemons() -> None:
    launcher = Launcher()
    assert launcher.prefix(0, "stdout") == b"" and launcher.daemon is None
    assert launcher.missing(HOSTS, ()) == "torchrun to bring algo-1, algo-2 together"


def test_a_launcher_without_daemons_refuses_to_start_one() -> None:
    link = Link("algo-2")
    ranks = RankProcesses(
        link,
        HostPolicy(host="algo-2", stop=StopPolicy(), mask=str),
        launcher=Launcher(),
        script=SCRIPT,
        command=None,
    )
    host = History(ranks)
    link.state.inbox.append({"do": "launch", "id": 1, "words": ["orted"]})
    assert host.at(1) == []
    assert link.reports == [("algo-1", {"do": "exited", "id": 1, "status": 126})]

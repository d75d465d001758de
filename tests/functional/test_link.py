"""The hosts of a job come to the same conclusions, whatever happens to one of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from sm_runtime.failure import Failure
from sm_runtime.frozen import replace
from sm_runtime.link.config import ClusterConfig
from sm_runtime.link.link import Link
from sm_runtime.model import Cluster
from tests.harness import eventually

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
ONE, TWO, THREE = HOSTS
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


class Hosts:
    """The links of a job's hosts, which tell of each change by an event."""

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
        self.all(lambda link: link.state.start, "all go")
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

    def leave(self) -> None:
        for link in self.links.values():
            link.done()
        self.all(lambda link: link.state.finished, "all may leave")

    def close(self) -> None:
        for link in self.links.values():
            link.close(30)
        assert not [link for link in self.links.values() if link._thread.is_alive()]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with closing(Hosts()) as found:
        yield found


def failure(host: str, message: str = "m", status: int = 3) -> Failure:
    return Failure(name="X", message=message, phase="train", status=status, host=host)


def failed_with(hosts: Hosts, *parts: str) -> None:
    message = hosts.failure().message
    assert [part for part in parts if part not in message] == [], message


# -- a job that ends well ----------------------------------------------------------------------


def test_all_go_when_all_are_ready_and_are_over_when_all_have_finished(hosts: Hosts) -> None:
    links = [hosts.add(config(host)) for host in HOSTS]
    for number, link in enumerate(links):
        assert link.state.start is None
        link.ready({"script": number})
    hosts.all(lambda link: link.state.start, "all go")
    assert {
        json.dumps(link.state.start["ports"], sort_keys=True) for link in links if link.state.start
    } == {json.dumps({host: {"script": number} for number, host in enumerate(HOSTS)})}
    links[0].finished()
    links[1].finished()
    links[2].send(ONE, {"do": "something"})
    eventually(lambda: links[0].state.inbox, "the message of the third")
    assert not any(link.state.training_done for link in links)
    links[2].finished()
    hosts.all(lambda link: link.state.training_done, "all are over")
    hosts.leave()
    eventually(lambda: links[0].workers_gone, "the workers leave first")
    assert not any(link.state.failure or link.state.stop_reason for link in links)


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_the_others_may_linger_when_the_leader_has_finished(hosts: Hosts, seconds: float) -> None:
    links = hosts.start(patience_seconds=seconds)
    links[1].finished()
    links[2].send(ONE, {"do": "something"})
    eventually(lambda: links[0].state.inbox, "the message of the third")
    assert not links[0].state.training_done
    links[0].finished()
    hosts.all(lambda link: link.state.training_done, "all are over")


def test_a_host_that_is_awaited_is_not_hastened(hosts: Hosts) -> None:
    one, two, three = hosts.start(patience_seconds=0.0, awaited=(THREE,))
    one.finished()
    threading.Event().wait(0.5)
    assert not any(link.state.training_done for link in (one, two, three))
    assert busy_seconds(0.5) < 0.25
    three.finished()
    hosts.all(lambda link: link.state.training_done, "all are over, the second as well")


def test_a_host_that_comes_late_learns_what_has_happened(hosts: Hosts) -> None:
    for host in HOSTS[:2]:
        hosts.add(config(host)).ready({})
    hosts.links[TWO].stopped("SIGTERM")
    eventually(lambda: hosts.links[ONE].state.stop_reason, "the leader knows")
    late = hosts.add(config(THREE))
    eventually(lambda: late.state.stop_reason, "the late one knows")
    assert late.state.stop_reason == f"SIGTERM on {TWO}"


def test_a_host_that_starts_before_the_leader_waits_for_it(hosts: Hosts) -> None:
    worker = hosts.add(config(TWO, HOSTS[:2]))
    eventually(lambda: worker.state.waiting_for == ONE, "it waits")
    hosts.add(config(ONE, HOSTS[:2])).ready({})
    worker.ready({})
    hosts.all(lambda link: link.state.start, "all go")


def test_a_taken_port_is_no_hindrance(hosts: Hosts) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((ONE, config(ONE).port))
        taken.listen()
        hosts.start()


def test_messages_reach_the_host_they_are_for(hosts: Hosts) -> None:
    one, two, three = hosts.start()
    one.send(THREE, {"do": "launch"})
    eventually(lambda: three.state.inbox, "the third has it")
    three.send(ONE, {"do": "exited", "status": 0})
    eventually(lambda: one.state.inbox, "the leader has it")
    assert one.state.inbox.popleft() == {"do": "exited", "status": 0, "host": THREE}
    assert three.state.inbox.popleft() == {"do": "launch", "host": ONE}
    assert not two.state.inbox


# -- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", HOSTS)
def test_a_failure_anywhere_is_the_failure_everywhere(hosts: Hosts, at: str) -> None:
    hosts.start()
    hosts.links[at].failed(failure(at))
    assert hosts.failure() == failure(at)
    hosts.leave()


def test_of_several_failures_the_cause_counts_and_not_what_followed(hosts: Hosts) -> None:
    one, two, three = hosts.start()
    one.failed(failure(ONE, "mpirun"), 3)
    two.failed(failure(TWO, "connection reset by peer"), 2)
    three.failed(failure(THREE, "SIGKILL"), 1)
    assert hosts.failure().message == "SIGKILL"


def test_of_equal_failures_the_first_counts(hosts: Hosts) -> None:
    one, two, _ = hosts.start()
    one.failed(failure(ONE, "first"))
    one.failed(failure(ONE, "second"))
    two.failed(failure(TWO, "second"))
    assert hosts.failure().host in (ONE, TWO)
    assert hosts.failure().message in ("first", "second")
    assert (hosts.failure().host == ONE) <= (hosts.failure().message == "first")


def test_a_failure_before_all_have_come_reaches_who_comes_later(hosts: Hosts) -> None:
    hosts.add(config(ONE)).failed(failure(ONE, "pip"))
    eventually(lambda: hosts.links[ONE].state.failure, "the leader has failed")
    for host in HOSTS[1:]:
        hosts.add(config(host))
    assert hosts.failure().message == "pip"
    hosts.leave()


def test_a_failure_of_a_host_that_waits_for_the_leader_is_told_when_it_comes(hosts: Hosts) -> None:
    worker = hosts.add(config(TWO, HOSTS[:2]))
    worker.failed(failure(TWO, "pip"))
    hosts.add(config(ONE, HOSTS[:2])).ready({})
    assert hosts.failure().message == "pip"
    assert hosts.links[ONE].state.start is None


def test_a_failure_after_the_end_of_training_is_still_everybodys(hosts: Hosts) -> None:
    links = hosts.start()
    for link in links:
        link.finished()
    hosts.all(lambda link: link.state.training_done, "all are over")
    links[0].done()
    links[2].done()
    links[1].failed(failure(TWO, "upload"))
    links[1].done()
    assert hosts.failure().message == "upload"
    hosts.all(lambda link: link.state.finished, "all may leave")


def test_a_host_that_is_lost_while_it_saves_is_a_failure(hosts: Hosts) -> None:
    one, two, three = hosts.start()
    for link in (one, two, three):
        link.finished()
    hosts.all(lambda link: link.state.training_done, "all are over")
    one.done()
    three.done()
    hosts.links.pop(TWO).close()
    failed_with(hosts, f"{TWO} (127.0.0.1) is lost: the connection was closed")
    hosts.all(lambda link: link.state.finished, "all may leave")


def test_a_host_that_is_lost_is_why_the_others_fail(hosts: Hosts) -> None:
    one, _, three = hosts.start()
    one.failed(failure(ONE, "connection reset by peer"), 1)
    hosts.links.pop(TWO).close()
    failed_with(hosts, f"{TWO} (127.0.0.1) is lost")
    assert hosts.failure().name == "HostLostError"
    for link in (one, three):
        link.done()
    hosts.all(lambda link: link.state.finished, "nobody waits for the lost")


def test_a_lost_leader_ends_every_host(hosts: Hosts) -> None:
    hosts.start()
    hosts.links.pop(ONE).close()
    failed_with(hosts, f"{ONE} ({ONE}) is lost: the connection was closed")
    hosts.all(lambda link: link.state.finished, "nobody waits for the lost")


class Elsewhere:
    """A host in a process of its own, which can be suspended."""

    def __init__(self, found: ClusterConfig) -> None:
        values = {
            "host": found.current, "hosts": found.hosts, "port": found.port,
            "silence_seconds": found.silence_seconds,
        }  # fmt: skip
        code = (
            "import json, sys; from tests.functional.test_link import *\n"
            "found = json.loads(sys.argv[1])\n"
            "found['hosts'] = tuple(found['hosts'])\n"
            "link = Hosts().add(config(**found)); link.ready({})\n"
            "eventually(lambda: link.state.start, 'it goes', 60); print('going', flush=True)\n"
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


@pytest.mark.parametrize("silent", [ONE, TWO])
def test_a_host_that_falls_silent_is_lost(hosts: Hosts, silent: str) -> None:
    pair = HOSTS[:2]
    with Elsewhere(config(silent, pair, silence_seconds=3.0)) as elsewhere:
        rest = next(host for host in pair if host != silent)
        hosts.add(config(rest, pair, silence_seconds=0.5)).ready({})
        assert elsewhere.line() == "going"
        elsewhere.process.send_signal(signal.SIGSTOP)
        failed_with(hosts, f"{silent} (127.0.0.1) is lost: it has been silent for 0.5 s")
        hosts.links[rest].done()
        hosts.all(lambda link: link.state.finished, "nobody waits for the silent")


@pytest.mark.parametrize("suspended", [ONE, TWO])
def test_a_host_that_was_suspended_itself_does_not_take_the_others_for_silent(
    hosts: Hosts, suspended: str
) -> None:
    pair = HOSTS[:2]
    with Elsewhere(config(suspended, pair, silence_seconds=0.3)) as elsewhere:
        rest = next(host for host in pair if host != suspended)
        link = hosts.add(config(rest, pair, silence_seconds=60.0))
        link.ready({})
        assert elsewhere.line() == "going"
        elsewhere.process.send_signal(signal.SIGSTOP)
        threading.Event().wait(0.6)  # longer than its own patience
        elsewhere.process.send_signal(signal.SIGCONT)
        other = f"{rest} (127.0.0.1) is lost: it has been silent"
        threading.Event().wait(0.6)
        assert link.state.failure is None, other
        link.failed(failure(rest, "the end"))
        assert elsewhere.line() == "the end"


# -- a request to stop -------------------------------------------------------------------------


@pytest.mark.parametrize("at", HOSTS)
def test_a_request_to_stop_reaches_all_with_the_host_that_was_told(hosts: Hosts, at: str) -> None:
    hosts.start()
    hosts.links[at].stopped("SIGTERM")
    others = [link for host, link in hosts.links.items() if host != at]
    eventually(lambda: all(link.state.stop_reason for link in others), "the others know")
    assert {link.state.stop_reason for link in others} == {f"SIGTERM on {at}"}


def test_after_a_request_to_stop_nobodys_end_is_hastened(hosts: Hosts) -> None:
    one, two, three = hosts.start(patience_seconds=0.0)
    two.stopped("SIGTERM")
    eventually(lambda: one.state.stop_reason and three.state.stop_reason, "the others know")
    two.failed(failure(TWO, "stopped", 143))
    one.finished()
    two.send(ONE, {"do": "something"})
    eventually(lambda: one.state.inbox, "the leader has heard all that")
    threading.Event().wait(1.0)  # twice what failures take to settle
    assert not any(link.state.failure or link.state.training_done for link in (one, two, three))
    assert busy_seconds(0.5) < 0.25
    three.finished()
    assert hosts.failure().status == 143
    hosts.leave()


def test_a_stop_before_any_script_began_is_no_success(hosts: Hosts) -> None:
    links = hosts.start()
    links[1].stopped("SIGTERM")
    for link in links:
        link.finished(began=False)
    failure = hosts.failure()
    assert (failure.name, failure.status, failure.host) == ("StoppedError", 143, TWO)
    assert failure.message == "stopped by SIGTERM before the script started"


def test_a_stop_that_one_script_has_seen_is_its_hosts_success(hosts: Hosts) -> None:
    links = hosts.start()
    links[1].stopped("SIGTERM")
    for link in links:
        link.finished(began=link is links[2])
    hosts.all(lambda link: link.state.training_done, "all are over")
    assert not any(link.state.failure for link in links)


def test_after_a_request_to_stop_hosts_that_end_well_make_a_job_that_did(hosts: Hosts) -> None:
    links = hosts.start()
    links[0].stopped("SIGTERM")
    for link in links:
        link.finished()
    hosts.all(lambda link: link.state.training_done, "all are over")
    assert not any(link.state.failure for link in links)


def test_a_host_that_is_lost_while_all_stop_does_not_hold_up_the_end(hosts: Hosts) -> None:
    one, two, three = hosts.start()
    one.stopped("SIGTERM")
    eventually(lambda: two.state.stop_reason and three.state.stop_reason, "the others know")
    one.finished()
    hosts.links.pop(TWO).close()
    three.finished()
    failed_with(hosts, f"{TWO} (127.0.0.1) is lost")


def busy_seconds(seconds: float) -> float:
    """Return what this process computes in ``seconds``."""
    before = sum(os.times()[:2])
    threading.Event().wait(seconds)
    return sum(os.times()[:2]) - before


def test_hosts_that_only_wait_compute_nothing(hosts: Hosts) -> None:
    links = hosts.start(beat_seconds=2.0)
    assert busy_seconds(1.0) < 0.2
    links[0].failed(failure(ONE))
    hosts.failure()
    assert busy_seconds(1.0) < 0.2


# -- hosts that do not come, or should not -----------------------------------------------------


def test_a_host_that_never_comes_fails_all_by_name_and_cause(hosts: Hosts) -> None:
    names = (ONE, TWO, "no-such-host.invalid")
    for host in names[:2]:
        hosts.add(config(host, names, wait_seconds=0.5)).ready({})
    failed_with(hosts, "no-such-host.invalid: its name does not resolve", "for 0.5 s")
    assert hosts.failure().name == "PeerError"
    hosts.leave()


def test_a_host_that_resolves_but_does_not_connect_is_told_as_that(hosts: Hosts) -> None:
    hosts.add(config(ONE, wait_seconds=0.5)).ready({})
    failed_with(hosts, f"{TWO}: has not connected (resolved {TWO}); {THREE}: has not")
    hosts.leave()


def test_a_leader_that_never_comes_is_told_by_name_and_cause(hosts: Hosts) -> None:
    hosts.add(config(TWO, wait_seconds=0.5)).ready({})
    failed_with(hosts, f"{ONE}: {ONE} port", "Connection refused for 0.5 s")
    names = ("no-such-host.invalid", TWO)
    hosts.links.pop(TWO).close()
    hosts.add(config(TWO, names, wait_seconds=0.2))
    failed_with(hosts, "no-such-host.invalid: its name does not resolve")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"versions": {"Open MPI": "5.0.3"}}, f"Open MPI is 4.1.4 on {ONE} and 5.0.3 on {TWO}"),
        ({"versions": {}}, f"Open MPI is 4.1.4 on {ONE} and missing on {TWO}"),
        ({"kind": "torchrun"}, f"{ONE} runs mpi and {TWO} torchrun"),
    ],
)
def test_hosts_that_differ_do_not_start(hosts: Hosts, changes: dict[str, Any], text: str) -> None:
    same = {"versions": {"Open MPI": "4.1.4"}, "kind": "mpi"}
    hosts.add(config(ONE, HOSTS[:2], **same)).ready({})
    hosts.add(config(TWO, HOSTS[:2], **{**same, **changes})).ready({})
    failed_with(hosts, text, "all hosts of a job need the same")
    assert hosts.links[ONE].state.start is None


def test_another_version_of_the_runtime_does_not_start(hosts: Hosts) -> None:
    other = {"versions": {"sm-runtime": "0.0.1"}}
    hosts.add(config(ONE, HOSTS[:2])).ready({})
    hosts.add(config(TWO, HOSTS[:2], **other)).ready({})
    failed_with(hosts, "sm-runtime is ", f"and 0.0.1 on {TWO}")


@pytest.mark.parametrize("secret", [b"y" * 32, b""], ids=["another", "none"])
def test_a_host_with_another_secret_ends_at_once_and_says_so(hosts: Hosts, secret: bytes) -> None:
    pair = (ONE, "localhost")  # which is at the address that it connects from
    leader = hosts.add(config(ONE, pair))
    worker = hosts.add(config("localhost", pair, secret=secret))
    hosts.all(lambda link: link.state.failure, "all fail")
    for link in (leader, worker):
        assert link.state.failure and "SM_RUNTIME_CLUSTER_SECRET" in link.state.failure.message


def test_a_secret_that_the_leader_lacks_is_told(hosts: Hosts) -> None:
    pair = (ONE, "localhost")
    hosts.add(config(ONE, pair, secret=b""))
    hosts.add(config("localhost", pair))
    hosts.all(lambda link: link.state.failure, "all fail")
    messages = [link.state.failure.message for link in hosts.links.values() if link.state.failure]
    assert all("SM_RUNTIME_CLUSTER_SECRET" in message for message in messages)


def test_a_host_of_another_job_is_not_admitted(
    hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    leader = hosts.add(config(ONE, wait_seconds=1.0))
    other = hosts.add(config(TWO, wait_seconds=1.0, job_name="another"))
    eventually(lambda: leader.state.failure and other.state.failure, "both give up")
    text = f"another job's host answers, '{ONE}': its job's name is '' and this one's 'another'"
    assert other.state.failure and text in other.state.failure.message
    assert len([line for line in caplog.messages if line.endswith(text)]) == 1
    text = "it belongs to another job: its job's name is 'another' and this one's ''"
    assert (
        leader.state.failure
        and f"{TWO}: 127.0.0.1 was turned away: {text}" in leader.state.failure.message
    )


LISTS = [
    ((ONE, "localhost", THREE), f"{THREE} only in that of localhost"),
    ((ONE, THREE, "localhost"), f"{THREE} only in that of localhost"),
    ((ONE, "localhost", *map(str, range(1000))), ""),
]


@pytest.mark.parametrize("secret", [SECRET, b""], ids=["secret", "none"])
@pytest.mark.parametrize(("theirs", "why"), LISTS)
def test_hosts_whose_lists_differ_fail_at_once_and_say_how(
    hosts: Hosts, theirs: tuple[str, ...], why: str, secret: bytes
) -> None:
    hosts.add(config(ONE, (ONE, "localhost"), secret=secret, wait_seconds=600.0)).ready({})
    hosts.add(config("localhost", theirs, secret=secret, wait_seconds=600.0)).ready({})
    differ = f"the lists of hosts of {ONE} and localhost differ"
    failed_with(hosts, differ, why, "all hosts of a job need the same")
    hosts.leave()


def test_hosts_whose_lists_have_another_order_say_so(hosts: Hosts) -> None:
    hosts.add(config(ONE, (ONE, "localhost", THREE), job_name="j")).ready({})
    hosts.add(config("localhost", (ONE, THREE, "localhost"), job_name="j")).ready({})
    failed_with(hosts, f"the lists of hosts of {ONE} and localhost differ (their order)")


def test_a_host_that_the_leader_does_not_know_fails_at_once_and_the_others_go_on(
    hosts: Hosts,
) -> None:
    pair = (ONE, "localhost")
    hosts.add(config(ONE, pair, job_name="j")).ready({})
    unknown = Link(config(TWO, (*pair, TWO), job_name="j", wait_seconds=600.0), lambda: None)
    unknown.start()
    eventually(lambda: unknown.state.failure, "it is turned away")
    unknown.close()
    text = f"{TWO} is not in the list of hosts of {ONE}: their lists differ"
    assert unknown.state.failure and text in unknown.state.failure.message
    hosts.add(config("localhost", pair, job_name="j")).ready({})
    hosts.all(lambda link: link.state.start, "both go")


def test_a_host_may_have_a_long_name(hosts: Hosts) -> None:
    name = "0x" + "7f".zfill(52) + ".0x" + "0".zfill(52) + ".0.1"  # 127.0.0.1
    hosts.start((name, "localhost"))


def test_all_hosts_know_the_addresses_that_they_have(hosts: Hosts) -> None:
    leader, worker = hosts.start((ONE, "localhost"))
    assert leader.state.start and worker.state.start
    assert (
        leader.state.start["addresses"]
        == worker.state.start["addresses"]
        == {ONE: ONE, "localhost": ONE}
    )


@pytest.mark.parametrize(("silence", "beat"), [(1.0, 0.25), (8.0, 2.0), (20.0, 2.0)])
def test_a_host_says_several_times_per_silence_that_it_is_there(
    silence: float, beat: float
) -> None:
    cluster = Cluster(current_host=ONE, hosts=(ONE,))
    assert ClusterConfig(cluster=cluster, hosts=(ONE,), silence_seconds=silence).beat == beat


def test_a_short_silence_kills_no_healthy_job(hosts: Hosts) -> None:
    leader, worker, _ = hosts.start(beat_seconds=2.0, silence_seconds=1.0)
    threading.Event().wait(2.5)
    assert not leader.state.failure and not worker.state.failure


def test_two_jobs_on_one_machine_find_their_own(hosts: Hosts) -> None:
    """The second leader has moved up one port, and has no secret where the first has one."""
    others = Hosts()
    with closing(others):
        pair = (ONE, "localhost")
        hosts.add(config(ONE, pair, job_name="a"))
        others.add(config(ONE, pair, job_name="b", secret=b""))
        others.add(config("localhost", pair, job_name="b", secret=b""))
        hosts.add(config("localhost", pair, job_name="a"))
        for link in (*hosts.links.values(), *others.links.values()):
            link.ready({})
        hosts.all(lambda link: link.state.start, "the first goes")
        others.all(lambda link: link.state.start, "the second goes")


def test_a_host_that_comes_twice_is_let_in_once(hosts: Hosts) -> None:
    hosts.add(config(ONE)).ready({})
    first = hosts.add(config(TWO))
    eventually(lambda: first.state.waiting_for and first.state.waiting_for != ONE, "it is in")
    again = Link(config(TWO), lambda: None)
    again.start()
    eventually(lambda: again.state.failure, "it is turned away")
    again.close()
    assert (
        again.state.failure
        and f"turned away: {TWO} is already connected" in again.state.failure.message
    )
    assert not first.state.failure


def test_a_host_that_is_gone_does_not_come_back(hosts: Hosts) -> None:
    hosts.add(config(ONE)).ready({})
    first = hosts.add(config(TWO))
    eventually(lambda: first.state.waiting_for and first.state.waiting_for != ONE, "it is in")
    hosts.links.pop(TWO).close()
    failed_with(hosts, f"{TWO} (127.0.0.1) is lost")
    again = hosts.add(config(TWO))
    eventually(lambda: again.state.failure, "it is turned away")
    assert again.state.failure and "is already connected" in again.state.failure.message


# -- without a secret --------------------------------------------------------------------------


def test_without_a_secret_a_host_must_be_where_its_name_says(hosts: Hosts) -> None:
    pair = (ONE, TWO)  # whose connection comes from 127.0.0.1
    leader = hosts.add(config(ONE, pair, secret=b"", wait_seconds=1.0))
    worker = hosts.add(config(TWO, pair, secret=b"", wait_seconds=1.0))
    eventually(lambda: leader.state.failure and worker.state.failure, "both give up")
    for link in (leader, worker):
        text = f"it is not at the address of {TWO}, whose name resolves to {TWO}"
        assert link.state.failure and text in link.state.failure.message


def test_without_a_secret_each_host_comes_in_once(hosts: Hosts) -> None:
    pair = (ONE, "localhost")
    leader, worker = hosts.start(pair, secret=b"")
    again = Link(replace(worker.config, wait_seconds=0.5), lambda: None)
    again.start()
    eventually(lambda: again.state.failure, "it finds nobody")
    again.close()
    assert again.state.failure and "refused" in again.state.failure.message
    leader.finished()
    worker.finished()
    hosts.all(lambda link: link.state.training_done, "all are over")


# -- what may not happen -----------------------------------------------------------------------


def test_an_end_that_makes_no_sense_is_the_end_of_one_connection(hosts: Hosts) -> None:
    hosts.start()
    worker = hosts.links.pop(TWO)
    worker._report({"type": "failed", "failure": {"class": 1}})
    failed_with(hosts, f"{TWO} (127.0.0.1) is lost: malformed message")
    eventually(lambda: worker.state.finished, "it is let go")
    worker.close()
    hosts.leave()


def test_a_thread_that_dies_fails_the_job_and_lets_nobody_wait(hosts: Hosts) -> None:
    links = hosts.start()

    links[0]._report({"type": "pass"})
    eventually(lambda: all(link.state.finished for link in links), "nobody waits")
    assert links[0].state.failure and "KeyError: 'to'" in links[0].state.failure.message
    assert links[1].state.failure and f"{ONE} ({ONE}) is lost" in links[1].state.failure.message


def test_what_is_said_to_a_closed_link_goes_into_no_other_file(hosts: Hosts, tmp_path: Any) -> None:
    worker = hosts.start()[1]
    hosts.links[ONE].close()
    eventually(
        lambda: worker.state.finished and not worker._thread.is_alive(), "its thread has ended"
    )
    with ExitStack() as stack:
        paths = [tmp_path / str(number) for number in range(64)]
        files = [stack.enter_context(path.open("wb")) for path in paths]
        worker.finished()
        worker.done()
        worker.close()
        hosts.links[ONE].close()
        for file in files:
            file.write(b"x")
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"x"}


# -- one host ----------------------------------------------------------------------------------


def alone() -> Link:
    return Link(config(ONE, (ONE,)), lambda: None)


def test_a_single_host_decides_at_once_and_opens_no_socket() -> None:
    link = alone()
    link.start()
    link.ready({"script": 5})
    assert link.state.start and link.state.start["ports"] == {ONE: {"script": 5}}
    link.finished()
    assert link.state.training_done
    link.done()
    assert link.state.finished and link.workers_gone
    link.close()


def test_a_single_host_keeps_its_first_failure_and_its_first_stop() -> None:
    link = alone()
    link.stopped("SIGTERM")
    link.stopped("SIGINT")
    link.failed(failure(ONE, "first"))
    link.failed(failure(ONE, "second"))
    link.finished()
    assert link.state.stop_reason == "SIGTERM"
    assert link.state.failure == failure(ONE, "first")
    assert not link.state.training_done

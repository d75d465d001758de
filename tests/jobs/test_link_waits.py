"""Links whose hosts wait for each other for seconds."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.harness import eventually
from tests.links import HOSTS, ONE, THREE, TWO, Elsewhere, Hosts, config, failure


@pytest.mark.parametrize("suspended", [ONE, TWO])
def test_a_host_that_was_suspended_itself_does_not_take_the_others_for_silent(
    hosts: Hosts, suspended: str
) -> None:
    pair = HOSTS[:2]
    with Elsewhere(config(suspended, pair, silence_seconds=0.3)) as elsewhere:
        rest = next(host for host in pair if host != suspended)
        link = hosts.add(config(rest, pair, silence_seconds=60.0))
        link.ready({})
        assert elsewhere.line() == "started"
        elsewhere.process.send_signal(signal.SIGSTOP)
        threading.Event().wait(0.6)  # longer than its own patience
        elsewhere.process.send_signal(signal.SIGCONT)
        other = f"{rest} (127.0.0.1) is lost: it has been silent"
        threading.Event().wait(0.6)
        assert link.state.failure is None, other
        link.failed(failure(rest, "the end"))
        assert elsewhere.line() == "the end"


def test_hosts_that_only_wait_compute_nothing(hosts: Hosts) -> None:
    links = hosts.start(beat_seconds=2.0)
    assert busy_seconds(1.0) < 0.2
    links[0].failed(failure(ONE))
    hosts.failure()
    assert busy_seconds(1.0) < 0.2


def test_who_is_waited_for_is_logged_again_and_again_with_the_cause(
    hosts: Hosts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    names = ("localhost", TWO, THREE)
    worker = hosts.add(config(TWO, names, notice_seconds=0.3))
    refused = r"waiting for localhost \((\d) s / 60 s\): 127.0.0.1 port \d+: Connection refused"
    eventually(lambda: len(re.findall(refused, caplog.text)) > 1, "two lines", 30)
    leader = hosts.add(config("localhost", names, notice_seconds=0.3))
    absent = (
        rf"waiting for {THREE} \(\d s / 60 s\): {THREE}: has not connected \(resolved {THREE}\)"
    )
    eventually(lambda: len(re.findall(absent, caplog.text)) > 1, "two lines", 30)
    for link in (leader, hosts.add(config(THREE, names))):
        link.ready({})
    unready = rf"waiting for {TWO} to be ready"
    eventually(lambda: len(re.findall(unready, caplog.text)) > 1, "two lines", 30)
    worker.ready({})
    hosts.all(lambda link: link.state.start, "all start")


def test_a_short_silence_kills_no_healthy_job(hosts: Hosts) -> None:
    leader, worker, _ = hosts.start(beat_seconds=2.0, silence_seconds=1.0)
    threading.Event().wait(2.5)
    assert not leader.state.failure and not worker.state.failure


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with closing(Hosts()) as found:
        yield found


def busy_seconds(seconds: float) -> float:
    """Return what this process computes in ``seconds``."""
    before = sum(os.times()[:2])
    threading.Event().wait(seconds)
    return sum(os.times()[:2]) - before

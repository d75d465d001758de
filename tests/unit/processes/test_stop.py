"""One value owns every deadline of a stop."""

from __future__ import annotations

import math
from signal import SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR2

import pytest

from sm_runtime.processes.stop import Stop, StopPolicy


def test_the_first_request_begins_the_grace_and_gives_the_reason() -> None:
    stop = Stop(StopPolicy(grace_seconds=10))
    assert (stop.reason, stop.kill_at) == (None, math.inf)
    assert stop.request("SIGTERM", SIGTERM, 5.0) == SIGTERM
    assert stop.request("SIGHUP", SIGHUP, 6.0) == SIGHUP
    assert (stop.reason, stop.received, stop.kill_at) == ("SIGTERM", SIGTERM, 15.0)


@pytest.mark.parametrize("number", [SIGTERM, SIGHUP, SIGQUIT])
def test_a_request_that_is_repeated_is_not_passed_on(number: int) -> None:
    stop = Stop(StopPolicy(grace_seconds=10))
    stop.request("first", number, 0.0)
    assert stop.request("again", number, 1.0) is None
    assert stop.kill_at == 10.0


def test_a_second_interrupt_kills_at_once() -> None:
    stop = Stop(StopPolicy(grace_seconds=10))
    stop.request("SIGINT", SIGINT, 0.0)
    assert stop.request("SIGINT", SIGINT, 1.0) is None
    assert stop.kill_at == 1.0


def test_the_image_chooses_what_the_script_gets_for_sigterm_alone() -> None:
    stop = Stop(StopPolicy(stop_signal=SIGUSR2))
    assert stop.request("SIGTERM", SIGTERM, 0.0) == SIGUSR2
    assert stop.request("SIGINT", SIGINT, 0.0) == SIGINT
    assert stop.received == SIGTERM


def test_the_longest_run_is_counted_from_the_first_start() -> None:
    stop = Stop(StopPolicy(max_seconds=60))
    assert stop.next_time() == math.inf
    stop.start(5.0)
    stop.start(50.0)
    assert stop.next_time() == 65.0
    assert stop.due(64.9) is None
    assert stop.due(65.0) == "MaxRuntimeInSeconds (60 s)"
    assert stop.due(66.0) is None, "once"


@pytest.mark.parametrize("fails", [False, True])
def test_a_silence_is_a_request_only_where_it_is_a_failure(fails: bool) -> None:
    stop = Stop(StopPolicy(silence_seconds=30, silence_fails=fails))
    stop.silent(40.0)
    assert stop.next_time() == (41.0 if fails else math.inf), "the dump of the stacks comes first"
    assert stop.due(41.0) == ("no output for 30 s" if fails else None)

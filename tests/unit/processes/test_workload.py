"""What becomes of one process: histories of signals, ends and times."""

from __future__ import annotations

import math
from signal import SIGINT, SIGTERM, SIGUSR1, SIGWINCH

import pytest

from sm_runtime.processes.stop import StopPolicy
from sm_runtime.processes.workload import (
    VANISH_SECONDS,
    Action,
    Ask,
    Exited,
    Kill,
    Offer,
    Send,
    Signalled,
    Silent,
    SingleProcess,
    StopRequested,
    Streams,
    Vanished,
    Watch,
)
from tests.histories import SCRIPT, History

GRACE = 10.0


def history(**policy: object) -> History:
    policy = {"grace_seconds": GRACE, **policy}
    return History(SingleProcess(SCRIPT, StopPolicy(**policy)))


def asked(reason: str = "SIGTERM", number: int = SIGTERM) -> Ask:
    return Ask(key=0, number=number, reason=reason, received=number, grace_seconds=GRACE)


def test_it_begins_with_the_process_and_ends_with_it() -> None:
    job = history()
    [start] = job.started
    assert (start.command, start.streams, start.owns_all) == (SCRIPT, Streams.OURS, True)
    assert (job.next_time(), job.is_done) == (math.inf, False)
    assert job.at(1, Exited(0, 3)) == []
    assert job.is_done, "what it has left behind is swept away"
    assert job.workload.deadline() == 0.0


@pytest.mark.parametrize("left", [False, True])
def test_what_it_leaves_behind_after_a_stop_keeps_the_grace(left: bool) -> None:
    job = history()
    assert job.at(1, Signalled(SIGTERM)) == [asked()]
    assert job.next_time() == 1 + GRACE
    assert job.at(2, Exited(0, -15)) == [Watch(0, asks_others=True)]
    assert not job.is_done
    if left:
        assert job.at(1 + GRACE - 0.1) == []
        assert job.at(1 + GRACE) == [Kill(0)]
        assert not job.is_done
    job.at(1 + GRACE + 0.1, Vanished(0))
    assert job.is_done
    assert job.workload.deadline() == 100 + 1 + GRACE


def test_what_does_not_vanish_when_it_is_killed_is_given_up() -> None:
    job = history()
    job.at(0, Signalled(SIGTERM))
    assert job.at(GRACE) == [Kill(0)]
    assert job.at(GRACE + 0.1, Exited(0, -9)) == [Watch(0, asks_others=False)]
    assert job.next_time() == GRACE + VANISH_SECONDS
    assert job.at(GRACE + VANISH_SECONDS) == []
    assert job.is_done


def test_a_process_that_cannot_be_killed_is_killed_again_until_it_is_reaped() -> None:
    job = history()
    job.at(0, Signalled(SIGTERM))
    for turn in range(3):
        assert job.at(GRACE + turn * VANISH_SECONDS) == [Kill(0)]
        assert not job.is_done


def test_a_second_interrupt_kills_at_once_and_another_sigterm_does_nothing() -> None:
    job = history()
    assert job.at(1, Signalled(SIGINT)) == [asked("SIGINT", SIGINT)]
    assert job.at(2, Signalled(SIGTERM)) == [Send(0, SIGTERM)]
    assert job.at(3, Signalled(SIGINT)) == []
    assert job.next_time() == 3
    assert job.at(3) == [Kill(0)]


OTHER: list[tuple[int, Action]] = [(SIGUSR1, Offer(0, SIGUSR1)), (SIGWINCH, Send(0, SIGWINCH))]


@pytest.mark.parametrize("number, action", OTHER)
def test_other_signals_are_no_stop(number: int, action: Action) -> None:
    job = history()
    assert job.at(1, Signalled(number)) == [action]
    assert job.next_time() == math.inf


def test_a_stop_from_before_the_start_is_one_of_the_process() -> None:
    job = history()
    reason = "no space is left"
    assert job.at(0, StopRequested(reason)) == [asked(reason)]
    assert job.at(0, Signalled(SIGTERM)) == [], "it has had its SIGTERM"


def test_the_longest_run_asks_and_then_kills() -> None:
    job = history(max_seconds=60)
    assert job.next_time() == 60
    assert job.at(60) == [asked("MaxRuntimeInSeconds (60 s)")]
    assert job.at(60 + GRACE) == [Kill(0)]


def test_a_process_that_has_ended_gets_nothing_more() -> None:
    job = history(max_seconds=60)
    job.at(1, Exited(0, 0))
    assert job.at(60) == []
    assert job.at(61, Signalled(SIGTERM), Signalled(SIGUSR1)) == []
    assert job.next_time() == math.inf


def test_each_silence_has_the_stacks_dumped() -> None:
    job = history(silence_seconds=30)
    assert job.started[0].silence_seconds == 30
    for turn in (1, 2):
        assert job.at(30 * turn, Silent(0)) == [Offer(0, SIGUSR1)]
    assert job.next_time() == math.inf


def test_a_silence_that_fails_is_a_stop_after_the_dump() -> None:
    job = history(silence_seconds=30, silence_fails=True)
    assert job.at(30, Silent(0)) == [Offer(0, SIGUSR1)]
    assert job.at(30.5, Silent(0)) == []
    assert job.at(31) == [asked("no output for 30 s")]
    assert job.at(60.5, Silent(0)) == []


def test_a_command_whose_output_is_kept_is_ended_after_its_time_without_a_reason() -> None:
    policy = StopPolicy(grace_seconds=1)
    job = History(SingleProcess(SCRIPT, policy, Streams.KEPT, seconds=30))
    assert job.started[0].streams is Streams.KEPT
    assert job.next_time() == 30
    assert job.at(30) == [Ask(key=0, number=SIGTERM)]
    assert job.at(30.5) == [], "once"
    assert job.at(31) == [Kill(0)]

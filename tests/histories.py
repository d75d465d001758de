"""Histories of a workload: events at times that a test sets, and what they lead to."""

from __future__ import annotations

from collections.abc import Sequence

from sm_runtime.cluster.agreement import ClusterConfig, Priority, State
from sm_runtime.job.failure import Failure
from sm_runtime.job.model import Cluster, Command, Ended
from sm_runtime.processes.workload import Action, Due, Event, Start, Workload

SCRIPT = Command(argv=("python3", "train.py"), cwd="/opt/ml/code", env={})


class Actions(list[Action]):
    """Actions that equal others of the same kinds only: they are tuples."""

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, list)
        return super().__eq__(other) and [*map(type, self)] == [*map(type, other)]

    __hash__ = None  # type: ignore[assignment]


class History:
    """A workload that has begun at the time 100."""

    def __init__(self, workload: Workload) -> None:
        self.workload, self.now = workload, 100.0
        self.started: list[Start] = []
        self.first = self._noted(workload.begin(self.now))

    def at(self, after: float, *events: Event) -> Actions:
        """Return what events lead to, ``after`` seconds; none: what is due then."""
        self.now = 100.0 + after
        return Actions(
            action
            for event in events or (Due(),)
            for action in self._noted(self.workload.on(event, self.now))
        )

    def next_time(self) -> float:
        """Return after how many seconds something is due."""
        return self.workload.next_time() - 100.0

    @property
    def is_done(self) -> bool:
        return self.workload.is_done(self.now)

    def _noted(self, actions: Sequence[Action]) -> list[Action]:
        found = list(actions)
        self.started += [action for action in found if isinstance(action, Start)]
        return found


def ended(status: int, **more: object) -> Ended:
    """Return how a process ended, as a shell gives it."""
    return Ended(status=status, **more)


class Link:
    """The link of a host whose reports a test reads, and whose state it sets."""

    def __init__(
        self, current: str = "algo-1", hosts: tuple[str, ...] = ("algo-1", "algo-2")
    ) -> None:
        self.config = ClusterConfig(
            cluster=Cluster(current_host=current, hosts=hosts), hosts=hosts, wait_seconds=60.0
        )
        self.state = State()
        self.reports: list[object] = []

    def failed(self, failure: Failure, priority: int) -> None:
        self.reports.append((failure.message, failure.rank, Priority(priority)))

    def finished(self, *, began: bool) -> None:
        self.reports.append(("finished", began))

    def stopped(self, reason: str) -> None:
        self.reports.append(("stopped", reason))

    def send(self, host: str, message: dict[str, object]) -> None:
        self.reports.append((host, message))

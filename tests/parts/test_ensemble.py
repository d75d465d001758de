"""What a host draws from the ends of its processes."""

from __future__ import annotations

import os
from contextlib import ExitStack

from sm_runtime.cluster.agreement import ClusterConfig
from sm_runtime.cluster.host import HostPolicy, HostProcesses
from sm_runtime.cluster.link import Link
from sm_runtime.job.model import Cluster, Command
from sm_runtime.processes.relay import open_sinks
from sm_runtime.processes.stop import StopPolicy
from sm_runtime.processes.supervisor import Supervisor
from sm_runtime.processes.workload import ProcessState


class OverAtOnce(HostProcesses):
    """All hosts agree on the end in the moment in which a script ends."""

    def ended(self, state: ProcessState) -> None:
        super().ended(state)
        self.link.state.training_done = True


def test_a_failure_whose_output_is_held_open_is_told_though_all_was_over() -> None:
    with ExitStack() as undo:
        stage = undo.enter_context(Supervisor(*open_sinks()))
        config = ClusterConfig(cluster=Cluster(current_host="a", hosts=("a",)), hosts=("a",))
        link = Link(config, stage.wake)
        link.ready({})
        script = Command(
            argv=("sh", "-c", "setsid sleep 60 & exit 3"),
            cwd="/",
            env={"PATH": os.environ["PATH"]},
            name="script",
        )
        own = HostPolicy(host="a", stop=StopPolicy(grace_seconds=1.0), mask=str)
        stage.run(OverAtOnce(link, own, [script]))
    assert link.state.failure is not None
    assert link.state.failure.status == 3

"""Jobs under ``srun``: hosts from Slurm's variables, scancel, requeue."""

from __future__ import annotations

import json
import re
import tarfile
from typing import Any

import pytest

from sm_runtime.contract.slurm import nodes
from tests.harness import Result, eventually
from tests.nodelists import LISTS, WRONG
from tests.slurm.conftest import NODES, Job

SHOWS = """
import json, os
names = ("SM_CURRENT_HOST", "SM_HOSTS", "SLURM_JOB_NUM_NODES", "TF_CONFIG", "PMIX_NAMESPACE")
print("shown " + json.dumps({name: os.environ.get(name) for name in names}), flush=True)
"""
SUMS = """
import json, os
from mpi4py import MPI
world = MPI.COMM_WORLD
said = {"rank": world.rank, "size": world.size, "total": world.allreduce(world.rank)}
said["host"], said["nodes"] = os.environ["SM_CURRENT_HOST"], os.environ["SLURM_JOB_NUM_NODES"]
said["outer"] = [n for n in os.environ if n.startswith("PMI") and "slurm" in os.environ[n]]
print("shown " + json.dumps(said), flush=True)
"""
SAVES = """
import os, signal, sys, time
count = 0
def save(number, frame):
    global count
    count += 1
    if count == 1:
        time.sleep(2)  # a second request would come meanwhile
        rank = os.environ.get("OMPI_COMM_WORLD_RANK", "")
        path = os.path.join(os.environ["SM_MODEL_DIR"], "requests" + rank)
        with open(path, "w") as file:
            file.write(str(count))
        sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True:
    time.sleep(1)
"""
HEARS = """
import signal, time
heard = set()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: heard.add(int(number)))
print("ready", flush=True)
while len(heard) < 2:
    time.sleep(0.1)
print("heard", sorted(heard), flush=True)
"""
RESUMES = """
import os, signal, sys, time
path = os.path.join(os.environ["SM_HP_FOLDER"], os.environ["SLURMD_NODENAME"], "checkpoints/step")
if os.path.exists(path):
    with open(path) as file, open(os.path.join(os.environ["SM_MODEL_DIR"], "from"), "w") as model:
        model.write(file.read() + " " + os.environ["SLURM_RESTART_COUNT"])
    sys.exit(0)
def save(number, frame):
    with open(path, "w") as file:
        file.write("step 7")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True:
    time.sleep(1)
"""
MPI = {
    "sagemaker_mpi_enabled": "true",
    "sagemaker_mpi_num_of_processes_per_host": "2",
}
PARAMETER_SERVER = {"sagemaker_parameter_server_enabled": "true"}
MULTI_WORKER = {"sagemaker_multi_worker_mirrored_strategy_enabled": "true"}


def shown(result: Result) -> list[Any]:
    found = [json.loads(text) for text in re.findall(r"shown (\{.*\})", result.out.decode())]
    return sorted(found, key=lambda said: str(said.get("rank", said.get("SM_CURRENT_HOST"))))


def saved(job: Job, archive: str) -> dict[str, str]:
    """Return the files of an archive that the job has saved."""
    with tarfile.open(job.root / "saved/job/output" / archive) as tar:
        members = [member for member in tar.getmembers() if member.isfile()]
        return {member.name: tar.extractfile(member).read().decode() for member in members}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kind", "cluster"),
    [
        (
            PARAMETER_SERVER,
            {"master": ["n1:2222"], "ps": ["n1:2223", "n2:2223"], "worker": ["n2:2222"]},
        ),
        (MULTI_WORKER, {"worker": ["n1:8890", "n2:8890"]}),
    ],
    ids=["parameter servers", "MultiWorkerMirrored"],
)
def test_tensorflows_ways_of_training_have_the_nodes_of_the_step(
    job: Job, kind: dict[str, str], cluster: Any
) -> None:
    result = job.script(SHOWS, **kind).run("--mpi=pmix")
    assert result.status == 0, result.log
    found = shown(result)
    assert [said["SM_CURRENT_HOST"] for said in found] == [*NODES]
    for said in found:
        assert json.loads(said["SM_HOSTS"]) == [*NODES]
        assert json.loads(said["TF_CONFIG"])["cluster"] == cluster
        assert said["SLURM_JOB_NUM_NODES"] == "2"
        assert said["PMIX_NAMESPACE"].startswith("slurm.pmix."), "srun's own means to meet"
    assert "Slurm: 2 hosts, n2 is this one (SLURM_STEP_NODELIST=n[1-2])" in result.log


@pytest.mark.parametrize("manager", ["none", "pmix"])
def test_ranks_meet_over_all_nodes_whatever_srun_is_to_tell_them(job: Job, manager: str) -> None:
    result = job.script(SUMS, **MPI).run(f"--mpi={manager}")
    assert result.status == 0, result.log
    assert shown(result) == [
        {"rank": rank, "size": 4, "total": 6, "host": host, "nodes": "2", "outer": []}
        for rank, host in enumerate(("n1", "n1", "n2", "n2"))
    ]


BOTH = (("requests",), ("requests",))
STOPS = {
    "scancel": ({}, BOTH),
    "scancel, batch": ({}, BOTH),
    "scancel, parameter servers": (PARAMETER_SERVER, BOTH),
    "scancel, MPI": (MPI, (("requests0", "requests1"), ("requests2", "requests3"))),
    "time limit": ({}, BOTH),
}


@pytest.mark.parametrize("how", STOPS)
def test_a_stop_is_heard_once_by_each_script_and_its_model_is_saved(job: Job, how: str) -> None:
    kind, files = STOPS[how]
    job.saves().script(SAVES, **kind)
    if "batch" in how:
        words = job.batch(job.step(), "--wait")
    else:
        limit = ("--time=1", "--signal=TERM@55") if how == "time limit" else ()
        words = job.step("-N2", "--job-name", job.root.name, *limit)
    running = job.popen(words)
    count = sum(map(len, files))
    eventually(lambda: job.text(running).count("ready") == count, "all are ready", 60)
    if "scancel" in how:
        job.call("scancel", "--name", job.root.name)
    running.wait(90)
    eventually(job.is_over, "all nodes are done", 60)
    log = job.text(running)
    assert "asked" in log and "22.5 s left" in log
    assert "FAILURE" not in log
    for archive, names in zip(("model.tar.gz", "model-n2.tar.gz"), files, strict=True):
        assert saved(job, archive) == dict.fromkeys(names, "1"), log


def test_another_stop_signal_comes_beside_slurms_own(job: Job) -> None:
    running = job.script(HEARS).start(SM_RUNTIME_STOP_SIGNAL="INT")
    eventually(lambda: running.out.count(b"ready") == 2, "both are ready", 60)
    job.call("scancel", "--name", job.root.name)
    result = running.wait(60)
    assert result.out.count(b"heard [2, 15]") == 2, result.log
    assert "FAILURE" not in result.log


def test_a_job_is_not_hurt_by_a_signal_that_asks_for_stacks(job: Job) -> None:
    running = job.saves().script(SAVES, **MPI).start()
    eventually(lambda: running.out.count(b"ready") == 4, "all are ready", 60)
    job.call("scancel", "--signal=USR1", "--name", job.root.name)
    eventually(lambda: running.err.count(b"in _run_script") >= 4, "the stacks of all ranks", 60)
    job.call("scancel", "--name", job.root.name)
    running.wait(60)
    assert {*saved(job, "model.tar.gz")} == {"requests0", "requests1"}, bytes(running.err)


def test_a_job_that_is_requeued_resumes_from_its_checkpoints(job: Job) -> None:
    job.script(RESUMES, folder=str(job.root))
    for node, base in job.bases.items():
        path = str(base.path("checkpoints"))
        place = {"S3Uri": f"file://{job.root}/kept/{node}", "LocalPath": path}
        output = {"S3OutputPath": f"file://{job.root}/saved"}
        base.write(
            "input/config/job.json",
            {"TrainingJobName": "job", "OutputDataConfig": output, "CheckpointConfig": place},
        )
    # A node may be another one the next time: nothing but the checkpoints' place is left of it.
    clears = f"rm -rf {job.root}/$SLURMD_NODENAME/checkpoints; "
    step = [clears + word if word.startswith("export") else word for word in job.step()]
    running = job.popen(job.batch(step, "--requeue"))
    number = running.wait().out.split()[-1].decode()
    eventually(lambda: job.text(running).count("ready\n") == 2, "both are ready", 60)
    job.call("scontrol", "requeue", number)
    eventually(job.is_over, "the second run is over", 100)
    assert f"Slurm: job {number} was requeued, this is restart 1" in job.text(running)
    assert saved(job, "model.tar.gz") == saved(job, "model-n2.tar.gz") == {"from": "step 7 1"}


def test_more_tasks_than_one_on_a_node_are_refused_in_one_sentence(job: Job) -> None:
    result = job.script(SHOWS).run("--ntasks-per-node=2", "--overcommit")
    assert result.status == 1 and not shown(result)
    sentence = "environment: SLURM_STEP_NUM_TASKS: is 4 for 2 nodes: the runtime is one task on"
    assert sentence in result.log


def test_a_batch_script_without_srun_is_refused_in_one_sentence(job: Job) -> None:
    step = job.script(SHOWS).step()
    running = job.popen(job.batch(step[step.index("sh") :], "--wait"))
    assert running.wait(60).status == 1
    assert "SLURM_STEP_NODELIST: is missing, but the job has 2 nodes: `srun" in job.text(running)


def test_an_engine_that_is_turned_off_is_not_asked(job: Job) -> None:
    result = job.script(SHOWS).run(SM_RUNTIME_ENGINE="none")
    assert result.status == 0, result.log
    assert all(len(json.loads(said["SM_HOSTS"])) == 1 for said in shown(result))
    assert "Slurm:" not in result.log


def test_lists_of_nodes_are_read_as_slurm_reads_them(job: Job) -> None:
    for text in LISTS:
        assert list(nodes(text)) == job.call("scontrol", "show", "hostnames", text).split()
    for text in WRONG:
        with pytest.raises(ValueError):
            nodes(text)

"""How the user's script is run: as a plain process; the runtime has all other ways itself."""

from __future__ import annotations

import enum
from typing import Any, Mapping, Sequence

from . import environment, errors, process


class RunnerType(enum.Enum):
    """A way to run the script."""

    MPI = "MPI"
    Process = "Process"
    SMDataParallel = "SMDataParallel"
    PyTorchXLA = "PyTorchXLA"
    TorchDistributed = "TorchDistributed"


ProcessRunnerType = RunnerType.Process
MPIRunnerType = RunnerType.MPI
SMDataParallelRunnerType = RunnerType.SMDataParallel
PyTorchXLARunnerType = RunnerType.PyTorchXLA
TorchDistributedRunnerType = RunnerType.TorchDistributed

_KEYS = {
    RunnerType.MPI: "sagemaker_mpi_enabled",
    RunnerType.TorchDistributed: "sagemaker_torch_distributed_enabled",
}


def get(
    identifier: RunnerType | process.ProcessRunner,
    user_entry_point: str | None = None,
    args: Sequence[str] | None = None,
    env_vars: Mapping[str, str] | None = None,
    extra_opts: Any = None,
) -> process.ProcessRunner:
    """Return what runs the script; what is not given is the job's.

    Raises ClientError for every way but ``RunnerType.Process``.
    """
    if isinstance(identifier, process.ProcessRunner):
        return identifier
    if not isinstance(identifier, RunnerType):
        raise ValueError(f"Invalid identifier {identifier}")
    if identifier is not RunnerType.Process:
        raise errors.ClientError(_refusal(identifier))
    env = environment.Environment()
    return process.ProcessRunner(
        user_entry_point or env["user_entry_point"],
        args or env.to_cmd_args(),
        env_vars or env.to_env_vars(),
    )


def _refusal(kind: RunnerType) -> str:
    keys = [_KEYS[kind]] if kind in _KEYS else sorted(_KEYS.values())
    lacks = "" if kind in _KEYS else f" and does not have {kind.value}"
    return (
        f"RunnerType.{kind.name}: sm_runtime starts the processes of distributed training"
        f" itself{lacks}: set the hyperparameter {' or '.join(keys)} to true, and leave out"
        " SAGEMAKER_TRAINING_MODULE, whose function runs once on each host as a plain process"
    )

"""Which ways of distributed training a job asks for, and which of them there are."""

from __future__ import annotations

from sm_runtime.model import Job

_ALONE_TOO = (
    "sagemaker_mpi_enabled",
    "sagemaker_multi_worker_mirrored_strategy_enabled",
    "sagemaker_distributed_dataparallel_enabled",
    "sagemaker_torch_distributed_enabled",
    "sagemaker_pytorch_ddp_enabled",
    "sagemaker_pytorch_xla_multi_worker_enabled",
)
_WITH_OTHERS = ("sagemaker_parameter_server_enabled",)
"""With one host the script runs plainly, as in SageMaker's TensorFlow training toolkit."""


def problems(job: Job) -> list[str]:
    """Return a sentence for each way that this version lacks: a plain process would be no answer.

    A framework hook decides by itself, and a host whose group takes no part runs a plain process.
    """
    cluster = job.cluster
    if job.training_module or cluster.current_host not in cluster.distribution_hosts:
        return []
    keys = _ALONE_TOO + (_WITH_OTHERS if len(cluster.hosts) > 1 else ())
    return [
        f"hyperparameters: {key}: is true, and this version runs one plain process only"
        for key in keys
        if job.framework_parameters.get(key) is True
    ]

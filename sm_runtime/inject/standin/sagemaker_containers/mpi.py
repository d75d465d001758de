"""Starts MPI in the package that this one stands for."""

from .refused import refused

_ITSELF = (
    "sagemaker_containers.beta.framework.{}: sm_runtime starts MPI itself: set the hyperparameter"
    " sagemaker_mpi_enabled to true, and leave out SAGEMAKER_TRAINING_MODULE"
)

MasterRunner = refused("mpi.MasterRunner", _ITSELF)
WorkerRunner = refused("mpi.WorkerRunner", _ITSELF)

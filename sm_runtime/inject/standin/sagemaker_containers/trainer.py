"""Runs a whole job in the package that this one stands for."""

from .refused import refused

train = refused(
    "trainer.train",
    "sagemaker_containers.beta.framework.{} runs a whole job, and this process is part of one"
    " already: use the command train",
)

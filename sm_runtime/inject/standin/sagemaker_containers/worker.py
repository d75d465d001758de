"""Serves models in the package that this one stands for."""

from .refused import refused

Worker = refused("worker.Worker")
Response = refused("worker.Response")
Request = refused("worker.Request")
default_healthcheck_fn = refused("worker.default_healthcheck_fn")

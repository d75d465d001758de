"""Serves models in the package that this one stands for."""

from .refused import refused

start = refused("server.start")
next_safe_port = refused("server.next_safe_port")

"""The job as a script sees it, under the names of this package."""

from __future__ import annotations

from .environment import *  # type: ignore[import-not-found]  # noqa: F403
from .environment import Environment as TrainingEnv  # noqa: F401
from .refused import refused

ServingEnv = refused("env.ServingEnv")

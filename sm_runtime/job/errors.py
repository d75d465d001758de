"""The errors of a job.

JobError
 +-- ConfigError      a file, variable or hyperparameter says something that cannot be followed
 +-- CodeError        the user's code cannot be found, fetched or unpacked
 +-- InstallError     the requirements of the user's code cannot be installed
 +-- ModelError       a model that is to be served cannot be
 +-- DataError        a channel cannot be made ready
 +-- LaunchError      the script's process cannot be started
 +-- ArtifactError    the model or the output cannot be saved

``str()`` of each is one sentence that a user can act on: it names the file, the key and the value.
A script that fails, or a stop that is asked for, is no error of ours: see ``model.Ended``.
"""

from __future__ import annotations

from collections.abc import Iterable


class JobError(Exception):
    """A job cannot go on: ``str()`` says why in one sentence, ``phase`` in which part of it."""

    phase = "launch"
    status = 1


class ConfigError(JobError):
    """Something is wrong with the configuration; ``problems`` holds a sentence for each thing."""

    phase = "config"

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        more = len(self.problems) - 1
        super().__init__(
            self.problems[0]
            + (f" (and {more} more; `sm-runtime check` lists them all)" if more else "")
        )


class CodeError(JobError):
    """The user's code is missing, cannot be fetched, or must not be unpacked."""

    phase = "code"


class InstallError(JobError):
    """The requirements of the user's code cannot be met."""

    phase = "install"


class ModelError(JobError):
    """A model cannot be served: it is missing, damaged, or made for other software."""

    phase = "model"


class DataError(JobError):
    """A channel cannot be made ready."""

    phase = "download"


class LaunchError(JobError):
    """A process cannot be started."""

    phase = "launch"


class ArtifactError(JobError):
    """The model or the output cannot be saved."""

    phase = "upload"

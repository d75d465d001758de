"""Where everything of a job is: the tree below ``/opt/ml`` (AWS guide, training folders)."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders and files of a job below ``base`` (``/opt/ml``, or ``$SAGEMAKER_BASE_DIR``)."""

    base: str = "/opt/ml"

    def under(self, *parts: str) -> str:
        """Return the path of ``parts`` below the base folder."""
        return posixpath.join(self.base, *parts)

    @property
    def code(self) -> str:
        """The folder of the user's code."""
        return self.under("code")

    @property
    def model(self) -> str:
        """The folder that becomes ``model.tar.gz``."""
        return self.under("model")

    @property
    def input(self) -> str:
        """The folder of the configuration and of the channels."""
        return self.under("input")

    @property
    def config(self) -> str:
        """The folder of the JSON files that describe the job."""
        return self.under("input", "config")

    @property
    def data(self) -> str:
        """The folder below which each channel has its folder or FIFOs."""
        return self.under("input", "data")

    @property
    def pipe_state(self) -> str:
        """The folder in which readers of Pipe channels count epochs."""
        return self.under("pipe_state")

    @property
    def output(self) -> str:
        """The folder of ``success``, ``failure`` and ``data``."""
        return self.under("output")

    @property
    def output_data(self) -> str:
        """The folder that becomes ``output.tar.gz``."""
        return self.under("output", "data")

    @property
    def intermediate(self) -> str:
        """The folder that is synced while the job runs."""
        return self.under("output", "intermediate")

    @property
    def failure(self) -> str:
        """The file that tells the platform why a job failed."""
        return self.under("output", "failure")

    @property
    def success(self) -> str:
        """The empty file that marks a job that succeeded."""
        return self.under("output", "success")

    @property
    def checkpoints(self) -> str:
        """The default folder of checkpoints."""
        return self.under("checkpoints")

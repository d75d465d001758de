"""The arguments of a reader of a Pipe channel, checked as ``sagemaker_tensorflow`` does."""

from __future__ import annotations

import json
import os

from sm_runtime.frozen import dataclass
from sm_runtime.pipe_mode.errors import PipeModeDatasetException

FORMATS = ("RecordIO", "TFRecord", "TextLine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A Pipe channel, and how it is to be read."""

    channel: str
    record_format: str = "RecordIO"
    """``RecordIO``, ``TFRecord`` or ``TextLine``."""
    state_dir: str = "/opt/ml/pipe_state"
    pipe_dir: str = "/opt/ml/input/data"
    config_dir: str = "/opt/ml/input/config"
    timeout_seconds: float = 120.0
    """How long an epoch's FIFO may take to appear and to be written to."""


def check_channel(settings: Settings) -> None:
    """See that there is such a channel, in Pipe mode, and make the folder of the state.

    Raises FileNotFoundError where there is no ``inputdataconfig.json``, and
    PipeModeDatasetException.
    """
    os.makedirs(settings.state_dir, exist_ok=True)
    path = os.path.join(settings.config_dir, "inputdataconfig.json")
    with open(path, encoding="utf-8") as file:
        channels = json.load(file)
    name = settings.channel
    if name not in channels:
        known = ", ".join(sorted(channels)) or "none"
        raise PipeModeDatasetException(
            f"Channel {name} not found in Training Job InputDataConfig"
            f" ({path} has these channels: {known})"
        )
    mode = channels[name].get("TrainingInputMode", "")
    if mode.lower() != "pipe":
        raise PipeModeDatasetException(
            f"Channel {name} is not a PipeMode channel (its TrainingInputMode is {mode!r} in"
            f" {path}; read the files in {os.path.join(settings.pipe_dir, name)} instead)"
        )

"""Which epoch of a channel is next: a counter in a file, shared by all that read the channel."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress


def take_epoch(state_dir: str, channel: str) -> int:
    """Return the number of the next epoch of ``channel`` and count it as taken, under a lock.

    The files are those of ``sagemaker_tensorflow``; the folder is made if it is missing. Raises
    ValueError where the state is no number, and OSError.
    """
    os.makedirs(state_dir, exist_ok=True)
    state = _state(state_dir, channel)
    with open(os.path.join(state_dir, f".{channel}-pipe_mode-lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            with open(state, encoding="ascii") as file:
                text = file.read().strip()
        except FileNotFoundError:
            text = "0"
        if not text.isdecimal():
            raise ValueError(f"{state}: {text!r} is no number of an epoch")
        # Renamed into place: a process that is killed here leaves the old number or the new one.
        with open(f"{state}.new", "w", encoding="ascii") as file:
            file.write(str(int(text) + 1))
        os.replace(f"{state}.new", state)
    return int(text)


def forget_epochs(state_dir: str, channel: str) -> None:
    """Begin anew at epoch 0; raises OSError. Nothing may be reading the channel."""
    with suppress(FileNotFoundError):
        os.unlink(_state(state_dir, channel))


def _state(state_dir: str, channel: str) -> str:
    return os.path.join(state_dir, f".{channel}-pipe_mode-state")

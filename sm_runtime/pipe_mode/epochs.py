"""Which epoch of a channel is next: a counter in a file, shared by all that read the channel."""

from __future__ import annotations

import fcntl
import os


def take_epoch(state_dir: str, channel: str) -> int:
    """Return the number of the next epoch of ``channel`` and count it as taken, under a lock.

    The files are those of ``sagemaker_tensorflow``, so that a restart goes on where it was. Raises
    ValueError where the state is no number, and OSError.
    """
    state = os.path.join(state_dir, f".{channel}-pipe_mode-state")
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

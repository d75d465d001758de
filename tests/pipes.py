"""Feeds FIFOs the way the platform does it, from threads of a test."""

from __future__ import annotations

import json
import os
import struct
import threading
from pathlib import Path
from typing import Any

Piece = bytes | tuple[threading.Event, bytes]


def RECORDIO(payload: bytes) -> bytes:
    return struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4)


def numbered(lines: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(lines))


class Pipes:
    """The Pipe channels ``train`` and ``validation``, and the File channel ``files``."""

    def __init__(self, folder: Path) -> None:
        names = ("state", "pipe", "config")
        self.folders = {f"{name}_dir": str(folder / name) for name in names}
        self.closed_early: list[str] = []
        self._pipe = folder / "pipe"
        self._pipe.mkdir()
        (folder / "config").mkdir()
        modes = {"train": "Pipe", "validation": "pipe", "files": "File"}
        (folder / "config/inputdataconfig.json").write_text(
            json.dumps({name: {"TrainingInputMode": mode} for name, mode in modes.items()})
        )
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Pipes:
        return self

    def __exit__(self, *_: object) -> None:
        # An epoch that nobody opened holds its thread in open(2): open it, so that it ends.
        for thread in self._threads:
            while thread.is_alive():
                for path in self._pipe.glob("*_*"):
                    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
                thread.join(0.02)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def feed(self, channel: str, *epochs: Piece, first: int = 0) -> None:
        """Feed the epochs; one with an event goes on with the epoch before, when that is set."""
        whole: list[list[Piece]] = []
        for epoch in epochs:
            if isinstance(epoch, tuple):
                whole[-1].append(epoch)
            else:
                whole.append([epoch])
        # The first FIFO is there before anybody looks for it.
        os.mkfifo(self._pipe / f"{channel}_{first}")
        thread = threading.Thread(target=self._feed, args=(channel, whole, first), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _feed(self, channel: str, epochs: list[list[Piece]], first: int) -> None:
        for number, pieces in enumerate(epochs, first):
            path = self._pipe / f"{channel}_{number}"
            if number > first:
                os.mkfifo(path)
            try:
                with open(path, "wb", buffering=0) as pipe:
                    path.unlink()
                    for piece in pieces:
                        self._write(pipe, piece)
            except BrokenPipeError:
                self.closed_early.append(path.name)

    @staticmethod
    def _write(pipe: Any, piece: Piece) -> None:
        if isinstance(piece, tuple):
            assert piece[0].wait(60)
            piece = piece[1]
        rest = memoryview(piece)
        while rest:
            rest = rest[pipe.write(rest) :]

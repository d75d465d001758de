"""The link of a job on one host: every decision is made at once, and no socket is opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sm_runtime.failure import Failure
from sm_runtime.link.common import Link, Terms, never_began

if TYPE_CHECKING:
    from sm_runtime.model import Json


class Alone(Link):
    """A link to nobody."""

    def __init__(self, terms: Terms, notify: Callable[[], None]) -> None:
        super().__init__(terms, notify)
        self.everybody_left = True
        self._shut()

    def start(self) -> None:
        """Nobody else has to come."""

    def close(self, seconds: float = 0.0) -> None:
        """Nothing is open."""

    def _order(self, action: Callable[[], None]) -> None:
        action()

    def _tell(self, message: dict[str, Json]) -> None:
        kind = message["type"]
        if kind == "ready":
            self.going = {"ports": {self.terms.current: message["ports"]}, "interfaces": {}}
        elif kind == "finished" and self.failure is None:
            if self.stop and not message["began"]:
                self.failure = never_began(self.stop, self.terms.current)
            else:
                self.over = True
        elif kind == "failed":
            self.failure = self.failure or Failure.from_dict(message["failure"])
        elif kind == "stopped":
            self.stop = self.stop or str(message["reason"])
        elif kind == "done":
            self.farewell = True
        self._changed()

    def _pass_on(self, host: str, message: dict[str, Json]) -> None:
        raise AssertionError(f"there is no other host {host}")

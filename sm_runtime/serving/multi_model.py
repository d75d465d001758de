"""Many models behind one server: loaded and unloaded by request, each with a process of its own.

The interface is that of SageMaker's multi-model endpoints (multi-model-server's management API).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qs

from sm_runtime.job.errors import JobError
from sm_runtime.processes import hardware
from sm_runtime.serving.values import Answer, Request, RequestError, json_answer
from sm_runtime.serving.workers import Pool

MODELS = "/opt/ml/models"
UNLOAD_SECONDS = 30.0
"""How long requests for a model that is unloaded may take."""
_ARCHIVES = (".tar.gz", ".tgz")
_PAGE = 100
_RESERVE_BYTES = 2**27
"""Memory that has to be free, besides the model's files, before one more model is loaded."""


@dataclass(slots=True)
class _Loaded:
    url: str
    pool: Pool
    used: float


class Models:
    """The models that are loaded, by name."""

    def __init__(
        self,
        folders: Sequence[str],
        make: Callable[[str, str], Pool],
        timeout: float,
        *,
        evict: bool,
    ) -> None:
        """``make`` returns the workers, not started, for a name and a folder.

        ``folders``: where models may be; the second is where SageMaker's SDK mounts all of them, as
        archives, in its local mode, which loads none.
        """
        self._folders = folders
        self._starting: set[Pool] = set()
        self._make, self._timeout, self._evict = make, timeout, evict
        self._loaded: dict[str, _Loaded] = {}
        self._loading: dict[str, asyncio.Lock] = {}

    @property
    def is_ready(self) -> bool:
        """A server of many models is ready without any."""
        return True

    @property
    def pools(self) -> list[Pool]:
        """The workers of all models."""
        return [model.pool for model in self._loaded.values()]

    async def stop(self, *, now: bool = False) -> None:
        """End all workers, those that are being loaded too."""
        await asyncio.gather(*(pool.stop(now=now) for pool in (*self.pools, *self._starting)))

    async def answer(self, request: Request) -> tuple[Answer, int]:
        """Manage models, or have one of them answer."""
        path = request.path.rstrip("/")
        if path == "/models":
            return await self._models(request), 0
        if path == "/invocations":
            name = request.headers.get("x-amzn-sagemaker-target-model", "")
            if not name:
                raise RequestError(
                    "there are several models here: X-Amzn-SageMaker-Target-Model names one"
                )
            if os.path.normpath(name) != name:
                raise RequestError(f"X-Amzn-SageMaker-Target-Model: {name!r} is no name of a model")
            if name not in self._loaded:
                await self._load(name, self._place(name), self._folders)
            return await self._invoke(name, request)
        if path.startswith("/v1/models/"):
            name = path.removeprefix("/v1/models/").partition("/")[0].partition(":")[0]
            return await self._invoke(name, request)
        name, _, action = path.removeprefix("/models/").rpartition("/")
        if action == "invoke" and name:
            self._only(request, "POST")
            return await self._invoke(name, replace(request, path="/invocations"))
        return await self._model(request, path.removeprefix("/models/")), 0

    async def _models(self, request: Request) -> Answer:
        if request.method == "GET":
            return self._list(request)
        self._only(request, "GET", "POST")
        try:
            asked = json.loads(bytes(request.body))
            name, url = asked["model_name"], asked["url"]
            if not (isinstance(name, str) and isinstance(url, str) and name and url):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RequestError(
                'the body must be {"model_name": "NAME", "url": "/opt/ml/models/.../model"}'
            ) from None
        if not await self._load(name, url, self._folders[:1]):
            raise RequestError(f"the model {name!r} is loaded already", 409)
        return json_answer(200, {"status": f"the model {name!r} is loaded"})

    async def _model(self, request: Request, name: str) -> Answer:
        if request.method == "GET":
            return json_answer(200, self._pair(name, self._get(name)))
        self._only(request, "GET", "DELETE")
        model = self._get(name)
        del self._loaded[name]
        await model.pool.drain(UNLOAD_SECONDS)
        await model.pool.stop()
        return json_answer(200, {"status": f"the model {name!r} is unloaded"})

    async def _invoke(self, name: str, request: Request) -> tuple[Answer, int]:
        model = self._get(name)
        model.used = time.monotonic()
        answer, more = await model.pool.ask(request, self._timeout)
        return answer, int(more.get("rows", 0))

    def _get(self, name: str) -> _Loaded:
        if name not in self._loaded:
            raise RequestError(f"the model {name!r} is not loaded", 404)
        return self._loaded[name]

    async def _load(self, name: str, url: str, folders: Sequence[str]) -> bool:
        """Load a model; return False where it is loaded already."""
        path = self._resolved(url, folders)
        async with self._loading.setdefault(name, asyncio.Lock()):
            if name in self._loaded:
                return False
            await self._make_room(path)
            loop = asyncio.get_running_loop()
            try:
                pool = await loop.run_in_executor(None, self._make, name, path)
                self._starting.add(pool)
                try:
                    await pool.start()
                finally:
                    self._starting.discard(pool)
            except JobError as error:
                lacks_memory = any(
                    words in str(error) for words in ("want of memory", "MemoryError")
                )
                raise RequestError(str(error), 507 if lacks_memory else 500) from error
            self._loaded[name] = _Loaded(url, pool, time.monotonic())
            return True

    def _place(self, name: str) -> str:
        """Return where a model is that a client names, and nobody has loaded."""
        places = [os.path.join(folder, name) for folder in self._folders]
        return next(filter(os.path.exists, places), places[0])

    @staticmethod
    def _resolved(url: str, folders: Sequence[str]) -> str:
        """Return where a model is, links resolved; RequestError unless that is in ``folders``."""
        try:
            path = os.path.realpath(url)
        except ValueError:  # a NUL, or half of a surrogate pair
            raise RequestError(f"url: {url!r} is no path") from None
        roots = [os.path.realpath(folder) for folder in folders]
        root = next((root for root in roots if path.startswith(root + os.sep)), "")
        if not root:
            raise RequestError(f"url: {url!r} is not below {folders[0]}")
        inner = os.path.join(path, "model")
        if os.path.isdir(inner) and os.path.realpath(inner).startswith(root + os.sep):
            path = os.path.realpath(inner)
        if os.path.isfile(path) and path.endswith(_ARCHIVES):
            return path
        if not os.path.isdir(path):
            raise RequestError(f"url: there is no folder {url!r}", 404)
        if link := _leads_out(path, root):
            raise RequestError(f"url: {link} is a link to a place that is not below {root}")
        return path

    async def _make_room(self, path: str) -> None:
        """See that there is memory for one more model; unload others where that is wanted."""
        while _free_bytes() < _size(path) + _RESERVE_BYTES:
            if not (self._evict and self._loaded):
                raise RequestError("there is not enough memory for one more model", 507)
            name = min(self._loaded, key=lambda name: self._loaded[name].used)
            pool = self._loaded.pop(name).pool
            await pool.drain(UNLOAD_SECONDS)
            await pool.stop()

    def _list(self, request: Request) -> Answer:
        query = parse_qs(request.query)
        names = sorted(self._loaded)
        after = (query.get("next_page_token") or query.get("nextPageToken") or [""])[0]
        limit = (query.get("limit") or [""])[0]
        count = int(limit) if limit.isdecimal() and int(limit) else _PAGE
        rest = [name for name in names if name > after]
        found: dict[str, object] = {
            "models": [self._pair(name, self._loaded[name]) for name in rest[:count]]
        }
        if len(rest) > count:
            found["nextPageToken"] = rest[count - 1]
        return json_answer(200, found)

    @staticmethod
    def _pair(name: str, model: _Loaded) -> dict[str, str]:
        return {"modelName": name, "modelUrl": model.url}

    @staticmethod
    def _only(request: Request, *methods: str) -> None:
        if request.method not in methods:
            raise RequestError(f"{request.method} is not allowed for {request.path}", 405)


def _free_bytes() -> int:
    """Return how much memory can be had: that of the host, or what the container's limit leaves."""
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = hardware.memory_limit(), hardware.memory_used()
    return free if limit is None or used is None else min(free, limit - used)


def _leads_out(folder: str, root: str) -> str:
    """Return a link below ``folder`` whose target is not below ``root``, or nothing."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            if os.path.islink(path) and not os.path.realpath(path).startswith(root + os.sep):
                return path
    return ""


def _size(folder: str) -> int:
    total = os.path.getsize(folder) if os.path.isfile(folder) else 0
    for place, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(place, name)
            total += os.path.getsize(path) if os.path.exists(path) else 0
    return total

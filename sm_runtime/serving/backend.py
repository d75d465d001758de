"""What a server serves: the checks before anything is started, then its workers."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict

from sm_runtime.job.text import some
from sm_runtime.serving import code as own_code
from sm_runtime.serving import layout as layout_of
from sm_runtime.serving.code import OwnCode
from sm_runtime.serving.layout import Layout
from sm_runtime.serving.multi_model import MODELS, Models
from sm_runtime.serving.settings import Settings
from sm_runtime.serving.values import Answer, Request
from sm_runtime.serving.workers import Plan, Pool

log = logging.getLogger(__name__)


class Served:
    """One model folder, or the folder of many; made ready by ``start``."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], cpus: int) -> None:
        self._settings, self._cpus = settings, cpus
        self._environ = dict(environ)
        self._stopped = False
        self._pool: Pool | None = None
        self._models: Models | None = None

    async def start(self, rest_port: int) -> None:
        """Make everything ready; raises JobError with the cause where that cannot be."""
        self._environ.setdefault("SM_MODEL_DIR", self._settings.paths.model)
        self._environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
        self._environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
        if self._settings.multi_model:

            def make(name: str, folder: str) -> Pool:
                return self._workers(name, folder, rest_port, 1)

            base = self._settings.paths.under("models")
            folder = base if os.path.isdir(base) else MODELS
            self._models = Models(
                (folder, self._settings.paths.model),
                make,
                self._settings.timeout,
                evict=self._settings.evict_models,
            )
            return
        model_dir = self._settings.paths.model
        self._pool = await asyncio.get_running_loop().run_in_executor(
            None, self._workers, "the model", model_dir, rest_port, self._settings.workers
        )
        await self._pool.start()

    async def stop(self, *, now: bool = False) -> None:
        """End all workers; what was unpacked for them is removed."""
        self._stopped = True
        for part in (self._pool, self._models):
            if part is not None:
                await part.stop(now=now)

    @property
    def is_ready(self) -> bool:
        """Whether requests can be answered now."""
        part = self._models or self._pool
        return part is not None and part.is_ready

    async def answer(self, request: Request) -> tuple[Answer, int]:
        """Return the answer of a worker, and the rows of its batch."""
        if self._models is not None:
            return await self._models.answer(request)
        assert self._pool is not None
        answer, more = await self._pool.ask(request, self._settings.timeout)
        return answer, int(more.get("rows", 0))

    @property
    def pools(self) -> list[Pool]:
        """The workers of each model."""
        if self._models is not None:
            return self._models.pools
        return [self._pool] if self._pool else []

    def _workers(self, name: str, folder: str, rest_port: int, count: int) -> Pool:
        """Check what is to be served, install what its code asks for; start nothing."""
        layout = layout_of.find(folder, self._settings.default_model or "")
        try:
            return Pool(self._plan(name, layout, rest_port, count))
        except BaseException:
            shutil.rmtree(layout.unpacked, ignore_errors=True)
            raise

    def _plan(self, name: str, layout: Layout, rest_port: int, count: int) -> Plan:
        code = self._own_code(layout.folder)
        check(layout, code)
        _tell(layout)
        environ = dict(self._environ)
        if code is not None:
            environ |= own_code.install(
                code, self._environ, self._settings.paths, stopped=lambda: self._stopped
            )
        batching, held = self._settings.batching, min(4, max(2, self._cpus))
        lane = 2 * batching.max_rows * (batching.threads + 1) if batching else held + 2
        # What is not begun waits here: behind a handler that hangs it would wait in vain.
        window = self._settings.threads if code and code.program else lane
        return Plan(
            name=name,
            count=count,
            window=window,
            direct_window=lane,
            start={
                "folder": layout.folder,
                "code": asdict(code) if code else None,
                "rest_port": rest_port,
                "name": name if self._settings.multi_model else "",
                "workers": count,
                "cpus": self._cpus,
            },
            environ=environ,
            unpacked=layout.unpacked,
            startup_timeout=self._settings.startup_timeout,
        )

    def _own_code(self, folder: str) -> OwnCode | None:
        code = own_code.find(
            folder,
            self._environ,
            self._settings.paths,
            program=self._settings.program,
            submit_directory=None
            if self._settings.multi_model
            else self._settings.submit_directory,
            stopped=lambda: self._stopped,
        )
        if code is not None:
            own_code.check(code)
        return code


def check(layout: Layout, code: OwnCode | None) -> None:
    """Raise ModelError where there is nothing to serve, or something that cannot be."""
    if code is not None and code.program and (own_code.loads(code) or not layout.models):
        return  # a model of another framework, which the user's code loads
    layout.check()


def _tell(layout: Layout) -> None:
    for note in layout.notes:
        log.warning("%s", note)
    for name, model in layout.models.items():
        numbers = [str(number) for number in sorted(model.versions)]
        default = ", which answers where none is named" if name == layout.default_name else ""
        log.info("model %s: version %s%s", name, some(numbers[::-1], 5), default)

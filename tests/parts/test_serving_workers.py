"""A pool of workers, with real processes."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from dataclasses import asdict
from pathlib import Path

import pytest

from sm_runtime.serving import workers
from sm_runtime.serving.code import OwnCode
from sm_runtime.serving.values import Request, RequestError
from sm_runtime.serving.workers import Plan, Pool

WAITS = """
import pathlib, time
def handler(data, context):
    while not pathlib.Path(GO).exists():
        time.sleep(0.01)
    return "gone on", "text/plain"
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    program = tmp_path / "code/inference.py"
    program.parent.mkdir()
    program.write_text(WAITS.replace("GO", repr(str(tmp_path / "go"))))
    code = OwnCode(directory=str(program.parent), program=str(program))
    start = {
        "folder": str(tmp_path),
        "code": asdict(code),
        "rest_port": 1,
        "name": "",
        "workers": 1,
        "cpus": 1,
    }
    return Plan(
        name="the model",
        count=1,
        window=1,
        direct_window=1,
        start=start,
        environ={"PATH": os.environ["PATH"]},
        startup_timeout=60,
    )


def test_more_requests_than_may_wait_are_503(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests for the model itself, which handlers wait for, are counted apart."""
    monkeypatch.setattr(workers, "MAX_WAITING", 3)

    async def main() -> None:
        pool = Pool(plan)
        await pool.start()
        asked = [asyncio.ensure_future(pool.ask(Request(), 60)) for _ in range(4)]
        while (pool.under_way, pool.waiting) != (1, 3):
            await asyncio.sleep(0.01)
        with pytest.raises(RequestError, match="3 requests are waiting already") as caught:
            await pool.ask(Request(), 60)
        assert caught.value.status == 503
        answer, _ = await pool.ask(Request(path="/v1/models/x:predict"), 60)
        assert answer.status == 404
        (tmp_path / "go").touch()
        answers = await asyncio.gather(*asked)
        assert {answer.body for answer, _ in answers} == {b"gone on"}
        await pool.stop()

    asyncio.run(main())


def test_requests_that_nobody_waits_for_any_more_are_not_given_to_a_worker(
    plan: Plan, tmp_path: Path
) -> None:
    async def main() -> None:
        pool = Pool(plan)
        await pool.start()
        first = asyncio.ensure_future(pool.ask(Request(), 60))
        while pool.under_way != 1:
            await asyncio.sleep(0.01)
        with pytest.raises(RequestError) as caught:
            await pool.ask(Request(), 0.05)
        assert (caught.value.status, pool.waiting, pool.under_way) == (504, 0, 1)
        assert pool.is_ready  # a request that has only waited is no worker's fault
        (tmp_path / "go").touch()
        assert (await first)[0].body == b"gone on"
        await pool.stop()
        assert pool.pids == []

    asyncio.run(main())


def test_the_body_of_a_request_that_got_no_answer_is_freed_at_once(plan: Plan) -> None:
    async def main() -> None:
        pool = Pool(plan)
        await pool.start()
        body = memoryview(b"x" * 1000)
        kept, asked = weakref.ref(body), Request(body=body)
        del body
        gc.disable()
        try:
            with pytest.raises(RequestError) as caught:
                await pool.ask(asked, 0.05)
            assert caught.value.status == 504
            del asked, caught
            await asyncio.sleep(0)
            assert kept() is None
        finally:
            gc.enable()
            await pool.stop(now=True)

    asyncio.run(main())

"""An S3 ``model_dir`` in a managed job, as the SDK sends it; TensorFlow here cannot open it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.buckets import objects, reach
from tests.harness import Base
from tests.s3 import Server, serving

WRITES = """
import argparse, os
parser = argparse.ArgumentParser()
parser.add_argument("--model_dir")
folder = parser.parse_args().model_dir
print("restored", sorted(os.listdir(folder)), flush=True)
open(os.path.join(folder, "checkpoint"), "w").write("step 2")
"""
IGNORES = "import sys; print(sys.argv[1:])"
SAID = "TensorFlow has no S3 file system here: model_dir is "


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "buckets") as found:
        (found.folder / "bucket").mkdir()
        yield found


def managed(base: Base, script: str) -> Base:
    return base.script(script).hyperparameters(model_dir='"s3://bucket/job-1/model"')


def test_it_is_a_local_folder_that_is_synced(base: Base, server: Server) -> None:
    before = server.folder / "bucket" / "job-1" / "model" / "events"
    before.parent.mkdir(parents=True)
    before.write_bytes(b"step 1")
    reach(base, server.url)
    result = managed(base, WRITES).run()
    assert result.status == 0, result.log
    assert result.out == b"restored ['events']\n"
    assert objects(server) == {"job-1/model/events": b"step 1", "job-1/model/checkpoint": b"step 2"}
    assert result.log.count(SAID) == 1


def test_it_is_the_uri_where_that_is_asked_for(base: Base, server: Server) -> None:
    reach(base, server.url)
    result = managed(base, IGNORES).run(SM_RUNTIME_REDIRECT_MODEL_DIR="0")
    assert result.out == b"['--model_dir', 's3://bucket/job-1/model']\n"
    assert SAID not in result.log


def test_a_script_that_does_not_use_it_needs_no_store(base: Base) -> None:
    reach(base, "http://127.0.0.1:9")
    result = managed(base, IGNORES).run(AWS_MAX_ATTEMPTS="1")
    assert result.status == 0, result.log
    assert "model_dir is not restored, and nothing of it is sent: " in result.log


def test_what_a_script_leaves_there_without_a_store_fails_the_job_and_stays(base: Base) -> None:
    reach(base, "http://127.0.0.1:9")
    result = managed(base, WRITES).run(AWS_MAX_ATTEMPTS="1")
    assert result.status == 1
    assert "model_dir: 1 files are left in " in base.failure()
    assert base.path("shared/model/checkpoint").read_text() == "step 2"


def test_what_was_there_before_is_no_failure(base: Base) -> None:
    reach(base, "http://127.0.0.1:9")
    old = base.path("shared/model/old")
    old.parent.mkdir(parents=True)
    old.write_text("x")
    result = managed(base, IGNORES).run(AWS_MAX_ATTEMPTS="1")
    assert result.status == 0, result.log
    assert old.read_text() == "x"

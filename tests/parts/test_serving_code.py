"""A model's code that is submitted as an archive, and what it asks pip for."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sm_runtime.job.errors import CodeError, InstallError
from sm_runtime.job.model import Paths
from sm_runtime.serving import code, handlers
from sm_runtime.serving.code import OwnCode
from sm_runtime.serving.context import Surroundings
from sm_runtime.serving.values import Request
from tests.jobs.test_install import wheel
from tests.jobs.test_s3_code import tar_gz
from tests.s3 import CREDENTIALS, Server, serving

# Where another test of this process has imported TensorFlow, and with it distutils.
pytestmark = pytest.mark.filterwarnings("ignore:Setuptools is replacing distutils")
URI = "s3://a-bucket/a-model/sourcedir.tar.gz"
SOURCE = tar_gz(
    {"inference.py": "def handler(data, context): ...\n", "lib/requirements.txt": "--no-index\n"}
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3") / "buckets") as found:
        found.put(URI, SOURCE)
        yield found


@pytest.fixture
def ml(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """pip writes into a folder of the test's, which is on the path."""
    site = tmp_path / "site"
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_TARGET": str(site),
        "PYTHONPATH": str(site),
    }


def of_bucket(server: Server, environ: dict[str, str]) -> dict[str, str]:
    found = {"S3_ENDPOINT_URL": server.url, "AWS_REGION": "eu-west-1", "AWS_MAX_ATTEMPTS": "1"}
    return {**environ, **CREDENTIALS, **found}


def test_an_archive_in_s3_is_unpacked_to_the_code_folder(
    ml: Path, server: Server, environ: dict[str, str]
) -> None:
    found = code.find(
        str(ml / "model"), of_bucket(server, environ), Paths(str(ml)), submit_directory=URI
    )
    assert found is not None and found.program == str(ml / "code" / "inference.py")
    assert found.requirements == (str(ml / "code" / "lib"),)


def test_an_archive_is_unpacked_elsewhere_where_the_code_folder_is_taken(
    ml: Path, environ: dict[str, str]
) -> None:
    archive = ml / "sourcedir.tar.gz"
    archive.write_bytes(SOURCE)
    (ml / "code").mkdir()
    (ml / "code" / "train.py").touch()
    found = code.find(
        str(ml / "model"), environ, Paths(str(ml)), submit_directory=f"file://{archive}"
    )
    assert found is not None and found.program == str(ml / "code-submitted" / "inference.py")
    assert os.listdir(ml / "code") == ["train.py"]


def test_an_object_that_is_not_there_is_named(
    ml: Path, server: Server, environ: dict[str, str]
) -> None:
    wrong = "s3://a-bucket/nothing.tar.gz"
    with pytest.raises(CodeError, match=wrong):
        code.find(
            str(ml / "model"), of_bucket(server, environ), Paths(str(ml)), submit_directory=wrong
        )


def own_code(ml: Path, **requirements: str) -> OwnCode:
    """Code in ``model/code`` with requirements there and in its ``lib``."""
    folder = ml / "model" / "code"
    (folder / "lib").mkdir(parents=True)
    (folder / "setup.py").write_text("raise SystemExit('a package of training is not installed')")
    for place, text in requirements.items():
        name = folder / ("lib" if place == "lib" else "") / "requirements.txt"
        name.write_text(f"--no-index\n--find-links {ml}/wheels\n{text}\n")
    found = code.find(str(folder.parent), {}, Paths(str(ml)))
    assert found is not None
    return found


def imported(environ: dict[str, str], *names: str) -> bool:
    done = subprocess.run(
        (sys.executable, "-c", f"import {', '.join(names)}"), env=environ, check=False
    )
    return done.returncode == 0


def test_both_requirements_files_are_installed_once(
    ml: Path,
    environ: dict[str, str],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "sm_runtime")
    wheel(ml / "wheels", "beside-it", "1.0")
    wheel(ml / "wheels", "in-lib", "1.0")
    own = own_code(ml, code="beside-it==1.0", lib="in-lib")
    environ |= code.install(own, environ, Paths(str(ml)))
    assert imported(environ, "beside_it", "in_lib")
    assert "Successfully installed beside-it-1.0" in caplog.text
    caplog.clear()
    environ |= code.install(own, {**environ, "PATH": "/nowhere"}, Paths(str(ml)))
    assert "Successfully" not in caplog.text
    assert capfd.readouterr() == ("", "")  # of pip's output, which may hold an index's password


def test_pips_reason_is_the_errors(ml: Path, environ: dict[str, str]) -> None:
    wheel(ml / "wheels", "pinned", "1.0")
    own = own_code(ml, lib="pinned==2.0")
    with pytest.raises(InstallError) as caught:
        code.install(own, environ, Paths(str(ml)))
    said = str(caught.value)
    assert said.startswith(f"{ml}/model/code/lib/requirements.txt: pip ended with status 1")
    assert "pinned==2.0" in said


def test_a_stop_ends_pip(ml: Path, environ: dict[str, str]) -> None:
    own = own_code(ml, code="never")
    with pytest.raises(InstallError, match="stop"):
        code.install(own, environ, Paths(str(ml)), stopped=lambda: True)


def test_installation_can_be_turned_off(ml: Path, environ: dict[str, str]) -> None:
    own = own_code(ml, code="no-such-package")
    assert code.install(own, {**environ, "SM_RUNTIME_INSTALL": "0"}, Paths(str(ml))) == {}


def test_an_asynchronous_handler_is_waited_for(ml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ml / "model" / "code"
    folder.mkdir()
    text = "import asyncio\nasync def handler(data, context):\n    await asyncio.sleep(0)\n"
    (folder / "inference.py").write_text(text + "    return data.read()\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    found = code.find(str(folder.parent), {}, Paths(str(ml)))
    assert found is not None
    handle = handlers.load(found, Surroundings(model_dir=str(folder.parent)))
    assert handle(Request(body=b"x")).body == b"x"

"""Code that was submitted to object storage, fetched from a real server."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import tarfile
import venv
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.faults import first, proxying
from tests.harness import RUNTIME, Base, Result, package_alone
from tests.jobs.test_install import wheel
from tests.s3 import CREDENTIALS, Server, free_port, serving, serving_by_rclone

URI = "s3://a-bucket/a-job/source/sourcedir.tar.gz"
SCRIPT = "import sys, common.lib\nprint(common.lib.VALUE, sys.argv[1:], __file__)\n"


def tar_gz(files: Mapping[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content.encode()))
    return packed.getvalue()


SOURCE = tar_gz({"train.py": SCRIPT, "common/__init__.py": "", "common/lib.py": "VALUE = 'dep'\n"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3") / "buckets") as found:
        found.put(URI, SOURCE)
        yield found


@pytest.fixture
def remote(base: Base, server: Server, tmp_path: Path) -> Base:
    """A job whose code is in the bucket; temporary files go where the test can see them."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    base.hyperparameters(
        sagemaker_program='"train.py"', sagemaker_submit_directory=f'"{URI}"', epochs="3"
    )
    base.environ.update(
        CREDENTIALS,
        HOME=str(tmp_path),
        TMPDIR=str(scratch),
        S3_ENDPOINT_URL=server.url,
        AWS_REGION="eu-west-1",
        AWS_MAX_ATTEMPTS="1",
    )
    return base


def submitted(base: Base, uri: str) -> Base:
    return base.hyperparameters(
        sagemaker_program='"train.py"', sagemaker_submit_directory=f'"{uri}"'
    )


def url_of(listening: socket.socket) -> str:
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def leftovers(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "scratch").rglob("*"))


def refused(base: Base, tmp_path: Path, **environ: str) -> str:
    """Run the job, which has to fail for its code alone; return the reason."""
    result = base.run(**environ)
    assert result.status == 1
    assert result.out == b""
    assert "Traceback" not in result.log
    assert base.failure_json()["phase"] == "code"
    assert not leftovers(tmp_path)
    assert not base.path("code").exists() or not list(base.path("code").iterdir())
    return base.failure().splitlines()[0]


def ran(result: Result) -> str:
    assert result.status == 0, result.log
    return result.out.decode()


# --- what is fetched, and how the server is found


@pytest.mark.parametrize("region", ["AWS_REGION", "SAGEMAKER_REGION", "NO_REGION_AT_ALL"])
@pytest.mark.parametrize("name", ["S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_a_tarball_is_fetched_unpacked_and_run(
    remote: Base, tmp_path: Path, name: str, region: str
) -> None:
    remote.environ[name] = remote.environ.pop("S3_ENDPOINT_URL")
    remote.environ[region] = remote.environ.pop("AWS_REGION")
    out = ran(remote.run())
    assert out == f"dep ['--epochs', '3'] {remote.path('code/train.py')}\n"
    assert not leftovers(tmp_path)


def test_the_toolkits_name_of_the_endpoint_wins(remote: Base) -> None:
    ran(remote.run(AWS_ENDPOINT_URL_S3="http://127.0.0.1:9"))


def test_a_server_needs_no_host_name_for_each_bucket(remote: Base, server: Server) -> None:
    ran(remote.run(S3_ENDPOINT_URL=server.url.replace("127.0.0.1", "localhost")))


def test_a_single_script_keeps_its_name(remote: Base, server: Server) -> None:
    uri = server.put("s3://a-bucket/scripts 100%?/train.py", b"print(__file__)")
    assert ran(submitted(remote, uri).run()) == f"{remote.path('code/train.py')}\n"


def test_code_that_is_in_the_image_costs_no_request(remote: Base) -> None:
    remote.write("code/train.py", "print('of the image')")
    result = remote.run(
        SM_RUNTIME_CODE_PREFERENCE="image", S3_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}"
    )
    assert ran(result) == "of the image\n"


def test_a_connection_that_breaks_is_resumed(remote: Base, server: Server, tmp_path: Path) -> None:
    with proxying(server.url, first(1, "cut")) as proxy:
        out = ran(remote.run(S3_ENDPOINT_URL=proxy.url, AWS_MAX_ATTEMPTS="2"))
        assert proxy.seen("cut")
    assert out.startswith("dep ")
    assert not leftovers(tmp_path)


# --- what can go wrong is one sentence


def test_an_object_that_is_missing(remote: Base, tmp_path: Path) -> None:
    uri = "s3://a-bucket/elsewhere/sourcedir.tar.gz"
    assert f"{uri} does not exist" in refused(submitted(remote, uri), tmp_path)


def test_a_bucket_that_is_missing(remote: Base, tmp_path: Path) -> None:
    uri = "s3://no-such-bucket/sourcedir.tar.gz"
    why = refused(submitted(remote, uri), tmp_path)
    assert f"{uri} cannot be downloaded: there is no bucket no-such-bucket" in why


def test_no_server(remote: Base, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    why = refused(remote, tmp_path, S3_ENDPOINT_URL=url)
    assert f"{URI} cannot be downloaded: Could not connect to the endpoint URL" in why
    assert url in why


@pytest.mark.parametrize("url", ["localhost", "http://", "http://a b"])
def test_an_endpoint_that_is_no_url(remote: Base, tmp_path: Path, url: str) -> None:
    assert f"{URI} cannot be downloaded: Invalid endpoint: " in refused(
        remote, tmp_path, S3_ENDPOINT_URL=url
    )


def test_no_credentials(remote: Base, tmp_path: Path) -> None:
    for name in CREDENTIALS:
        del remote.environ[name]
    why = refused(remote, tmp_path)
    assert f"{URI} cannot be downloaded without credentials: set AWS_ACCESS_KEY_ID" in why


def test_credentials_that_the_server_does_not_know(remote: Base, tmp_path: Path) -> None:
    with serving_by_rclone(tmp_path / "by-rclone/buckets") as checking:
        checking.put(URI, SOURCE)
        why = refused(
            remote,
            tmp_path,
            AWS_SECRET_ACCESS_KEY="wrong-secret-of-mine",
            S3_ENDPOINT_URL=checking.url,
        )
    assert f"{URI} cannot be downloaded: " in why
    assert "wrong-secret" not in why


def test_an_object_that_is_no_archive(remote: Base, server: Server, tmp_path: Path) -> None:
    uri = server.put("s3://a-bucket/broken/sourcedir.tar.gz", b"<html>")
    assert f"{uri} is neither a tar" in refused(submitted(remote, uri), tmp_path)


def test_an_object_that_is_larger_than_code_may_be(remote: Base, tmp_path: Path) -> None:
    why = refused(remote, tmp_path, SM_RUNTIME_CODE_MAX_BYTES="100")
    assert f"{URI} has {len(SOURCE)} bytes, more than the 100 bytes" in why


def test_no_boto3_and_no_obstore(remote: Base, tmp_path: Path) -> None:
    """In an interpreter that has nothing but the standard library, pip and the runtime."""
    venv.create(tmp_path / "a venv", with_pip=True)
    python = tmp_path / "a venv/bin/python"
    command = (str(python), "-m", "sm_runtime")
    remote.environ["PYTHONPATH"] = str(package_alone(tmp_path))
    hint = f"'{python}' -m pip install boto3 obstore"
    sentence = f"{URI} needs boto3 and obstore, which are not installed: {hint}"
    checked = remote.run("check", command=command)
    assert (checked.status, checked.out.decode()) == (1, f"{sentence}\n")
    result = remote.run("train", command=command)
    assert result.status == 1
    assert sentence in remote.failure()
    assert not leftovers(tmp_path)
    # What it says to do works.
    for name in ("boto3", "obstore"):
        folder = wheel(tmp_path / "wheels", name, "1.99").parent
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}
    environ = {"PATH": os.environ["PATH"], **index}
    subprocess.run(("sh", "-c", hint), env=environ, capture_output=True, check=True)
    subprocess.run((python, "-c", "import boto3, obstore"), check=True)


# --- what only looks


def test_a_check_sends_no_request(remote: Base) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)
        result = remote.run("check", command=RUNTIME, S3_ENDPOINT_URL=url_of(listening))
        assert (result.status, result.out) == (0, b"no problem found\n"), result.log
        with pytest.raises(BlockingIOError):
            listening.accept()

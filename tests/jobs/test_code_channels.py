"""Code that comes as a channel, as in jobs without a network: it is waited for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.buckets import channel, request
from tests.faults import Request, proxying
from tests.harness import RUNTIME, Base
from tests.jobs.test_channels_jobs import WAIT, index
from tests.jobs.test_install import wheel
from tests.jobs.test_s3_code import tar_gz
from tests.s3 import Server, serving

SCRIPT = "import os, common.lib\nprint(common.lib.VALUE, os.environ['SM_CHANNEL_TRAIN'])\n"
FILES = {"train.py": SCRIPT, "common/__init__.py": "", "common/lib.py": "VALUE = 'dep'\n"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "buckets/bucket").mkdir(parents=True)
    with serving(tmp_path / "buckets") as server:
        for name, content in FILES.items():
            server.put(f"s3://bucket/source/{name}", content.encode())
        server.put("s3://bucket/packed/sourcedir.tar.gz", tar_gz(FILES))
        server.put("s3://bucket/train/x", b"data")
        yield server


def submitted(base: Base, value: str, program: str = "train.py") -> Base:
    value = value.format(data=base.path("input/data"), base=base.root)
    return base.hyperparameters(
        sagemaker_program=json.dumps(program), sagemaker_submit_directory=json.dumps(value)
    )


def quiet(base: Base) -> None:
    """``check`` and ``env`` report no problem, and fetch nothing."""
    for command in ("check", "env"):
        result = base.run(command, command=RUNTIME)
        assert result.status == 0, result.out
        assert not base.path("input/data/code").exists()
    assert base.run("check", command=RUNTIME).out == b"no problem found\n"


@pytest.mark.parametrize(
    ("uri", "value"),
    [
        ("s3://bucket/packed/", "{data}/code/sourcedir.tar.gz"),
        ("s3://bucket/packed/sourcedir.tar.gz", "file://{data}/code/sourcedir.tar.gz"),
        ("s3://bucket/source/", "{data}/code"),
        ("s3://bucket/", "{data}/code/source/"),
        ("file://{tmp}/buckets/bucket/packed/", "{data}/code/sourcedir.tar.gz"),
        ("file://{tmp}/buckets/bucket/source", "{data}/code"),
    ],
)
def test_code_in_a_channel_is_waited_for(
    base: Base, server: Server, tmp_path: Path, uri: str, value: str
) -> None:
    channels = [
        channel("train", "s3://bucket/train/"),
        channel("code", uri.format(tmp=tmp_path)),
    ]
    request(base, server.url, InputDataConfig=channels)
    submitted(base, value)
    quiet(base)
    result = base.run()
    assert result.status == 0, result.log
    assert result.out.decode() == f"dep {base.path('input/data/train')}\n"


@pytest.mark.parametrize("mode", ["FastFile", "Pipe"])
def test_code_is_files_whatever_the_mode_of_its_channel(
    base: Base, server: Server, mode: str
) -> None:
    """A channel takes the mode of its job where it has none of its own."""
    channels = [
        channel("train", "s3://bucket/train/", InputMode="File"),
        channel("code", "s3://bucket/packed/"),
    ]
    request(
        base,
        server.url,
        InputDataConfig=channels,
        AlgorithmSpecification={"TrainingInputMode": mode},
    )
    submitted(base, "{data}/code/sourcedir.tar.gz")
    server.put(
        "s3://bucket/packed/sourcedir.tar.gz",
        tar_gz({"train.py": "import os; print(os.environ['SM_INPUT_DATA_CONFIG'])"}),
    )
    quiet(base)
    result = base.run()
    assert result.status == 0, result.log
    assert json.loads(result.out)["code"]["TrainingInputMode"] == mode
    assert sorted(p.name for p in base.path("input/data").iterdir()) == ["code", "train"]


def test_a_code_folder_that_leads_into_a_channel_is_waited_for(base: Base, server: Server) -> None:
    """As an image may have it, in which the channel is the place of the code."""
    channels = [channel(name, f"s3://bucket/{name}/") for name in ("train", "source")]
    request(base, server.url, InputDataConfig=channels)
    base.path("code").symlink_to("input/data/source")
    base.environ["SAGEMAKER_PROGRAM"] = "train.py"
    result = base.run("check", command=RUNTIME)
    assert (result.status, result.out) == (0, b"no problem found\n")
    result = base.run()
    assert result.status == 0, result.log
    assert result.out.startswith(b"dep ")


def test_drivers_and_code_may_be_channels_of_their_own(base: Base, server: Server) -> None:
    """As the ModelTrainer of the SageMaker SDK sends them: a shell script runs the code."""
    driver = (
        "#!/bin/bash\nset -e\ncd {data}/code\n"
        "python3 {data}/sm_drivers/scripts/environment.py\npython3 train.py\n"
    ).format(data=base.path("input/data"))
    server.put("s3://bucket/drivers/sm_train.sh", driver.encode())
    server.put("s3://bucket/drivers/scripts/environment.py", b"print('environment')")
    channels = [
        channel("train", "s3://bucket/train/"),
        channel("code", "s3://bucket/source/"),
        channel("sm_drivers", "s3://bucket/drivers/"),
    ]
    request(base, server.url, InputDataConfig=channels)
    base.environ["SAGEMAKER_PROGRAM"] = f"{base.path('input/data')}/sm_drivers/sm_train.sh"
    quiet(base)
    result = base.run()
    assert result.status == 0, result.log
    assert result.out.decode() == f"environment\ndep {base.path('input/data/train')}\n"


def test_other_channels_come_while_requirements_of_code_in_a_channel_are_installed(
    base: Base, server: Server, tmp_path: Path
) -> None:
    """Each waits for the other to begin: one after the other would be over only by timeouts."""
    wheels = tmp_path / "wheels"
    wheel(wheels, "sm-runtime-probe", "1.0")
    server.put("s3://bucket/source/requirements.txt", b"sm-runtime-probe\n")
    installing, downloading = threading.Event(), threading.Event()
    met: list[bool] = []

    def plan(one: Request) -> str | None:
        if one.is_object and "/train/" in one.path:
            downloading.set()
            met.append(installing.wait(WAIT))
        return None

    with proxying(server.url, plan) as proxy, index(wheels, installing, downloading) as url:
        channels = [
            channel("train", "s3://bucket/train/"),
            channel("code", "s3://bucket/source/"),
        ]
        request(base, proxy.url, InputDataConfig=channels)
        submitted(base, "{data}/code")
        site = str(tmp_path / "site")
        result = base.run(PIP_INDEX_URL=url, PIP_TARGET=site, PYTHONPATH=site)
    assert result.status == 0, result.log
    assert result.out.startswith(b"dep ")
    assert met == [True]


@pytest.mark.parametrize("name", ["requirements.txt", "{data}/wheels/more.txt"])
def test_requirements_in_a_channel_are_waited_for(
    base: Base, server: Server, tmp_path: Path, name: str
) -> None:
    path = wheel(tmp_path / "wheels", "sm-runtime-probe", "1.0")
    server.put(f"s3://bucket/wheels/{path.name}", path.read_bytes())
    server.put("s3://bucket/wheels/more.txt", b"sm-runtime-probe\n")
    request(base, server.url, InputDataConfig=[channel("wheels", "s3://bucket/wheels/")])
    base.script("import sm_runtime_probe; print('ran')")
    base.write("code/requirements.txt", "sm-runtime-probe")
    site, data = str(tmp_path / "site"), base.path("input/data")
    result = base.run(
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=f"{data}/wheels",
        PIP_TARGET=site,
        PYTHONPATH=site,
        SM_RUNTIME_REQUIREMENTS=name.format(data=data),
    )
    assert (result.status, result.out) == (0, b"ran\n"), result.log


def test_a_channel_of_code_that_cannot_be_had_is_the_reason_of_the_failure(
    base: Base, server: Server
) -> None:
    channels = [
        channel("train", "s3://bucket/train/"),
        channel("code", "s3://bucket/nothing/"),
    ]
    request(base, server.url, InputDataConfig=channels)
    submitted(base, "{data}/code/sourcedir.tar.gz")
    result = base.run()
    assert (result.status, result.out) == (1, b"")
    assert base.failure().startswith("DataError: channel code: s3://bucket/nothing/")


def test_code_that_the_platform_should_have_placed_is_missed_at_once(base: Base) -> None:
    base.write("input/config/inputdataconfig.json", {"code": {}})
    submitted(base, "{data}/code/sourcedir.tar.gz")
    result = base.run()
    assert (result.status, result.out) == (1, b"")
    assert "sourcedir.tar.gz does not exist" in base.failure()
    assert base.run("check", command=RUNTIME).status == 1

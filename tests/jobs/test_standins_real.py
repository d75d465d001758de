"""The stand-ins for SageMaker's toolkits beside the real packages, installed from PyPI."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.harness import PACKAGE, Base
from tests.wheels import ROOT

REAL = ("sagemaker-training==5.1.4", "sagemaker-containers==2.8.6.post2")
IMPORTED = (
    *("boto3", "flask", "inotify_simple", "numpy", "paramiko", "protobuf", "psutil", "retrying"),
    *("scipy", "setuptools<81", "six"),
)
"""What they import; they ask for more, and for versions that today's Pythons do not have."""
MODULES = {
    "sagemaker_training": (
        *("content_types", "encoders", "entry_point", "environment", "errors", "files"),
        *("functions", "intermediate_output", "logging_config", "mapping", "modules", "params"),
        *("process", "runner", "timeout"),
    ),
    "sagemaker_containers.beta.framework": (
        *("content_types", "encoders", "entry_point", "env", "errors", "files", "functions"),
        *("logging", "mapping", "modules", "mpi", "params", "process", "runner", "server"),
        *("trainer", "transformer", "worker"),
    ),
}
LIST = """
import collections, collections.abc, inspect, json, sys, types
collections.Mapping = collections.abc.Mapping  # sagemaker_containers is older than Python 3.10
from importlib import import_module

def public(owner):
    return {name: getattr(owner, name) for name in dir(owner) if name[0] != "_"}

def parameters(value):
    if not callable(value) or isinstance(value, type) and issubclass(value, BaseException):
        return None
    try:
        return [p.name for p in inspect.signature(value).parameters.values()]
    except (TypeError, ValueError):
        return None

found = {}
for package, modules in json.loads(sys.argv[1]).items():
    top = import_module(package)
    for name in ("", *modules):
        if package == "sagemaker_training" and name:
            import_module(f"{package}.{name}")
        module = getattr(top, name) if name else top
        for key, value in public(module).items():
            own = getattr(value, "__module__", package).startswith(package.split(".")[0])
            if isinstance(value, types.ModuleType) or not own:
                continue
            path = ".".join(part for part in (package, name, key) if part)
            found[path] = parameters(value)
            if key in ("Environment", "TrainingEnv"):
                for part, what in public(value).items():
                    found[f"{path}.{part}"] = parameters(what)
print(json.dumps(found))
"""
SHOW = """
import json
from sagemaker_training import environment
env = environment.Environment()
print(json.dumps([dict(env), env.to_cmd_args(), env.to_env_vars(),
    environment.read_hyperparameters(), environment.channel_path("training"),
    env.sagemaker_s3_output()]))
"""
WATCH = "a part of how the toolkit reads output, which it calls itself"
SERVES = "serves models"
OLD = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
"""With which code that an old protoc has made can be imported."""
ABSENT = {
    "sagemaker_training.SM_EFA_NCCL_INSTANCES": "a list of instance types, for its own launchers",
    "sagemaker_training.SM_EFA_RDMA_INSTANCES": "a list of instance types, for its own launchers",
    "sagemaker_training.SM_TRAINING_COMPILER_PATHS": "SageMaker's compiler is not here",
    "sagemaker_training.process.DEFAULT_ERROR_CLASS": WATCH,
    "sagemaker_training.process.PIPE": WATCH,
    "sagemaker_training.process.SM_TRAINING_COMPILER_PATHS": "SageMaker's compiler is not here",
    "sagemaker_training.process.create": "returns what only the toolkit itself can use",
    "sagemaker_training.process.get_debugger_exception_classes": WATCH,
    "sagemaker_training.process.get_tensorflow_exception_classes": WATCH,
    "sagemaker_training.process.process_error_classes": WATCH,
    "sagemaker_training.process.run_async": WATCH,
    "sagemaker_training.process.validate_entry_point": WATCH,
    "sagemaker_training.process.watch": WATCH,
    "sagemaker_containers.beta.framework.process.create": "as above",
    "sagemaker_containers.beta.framework.server.UNIX_SOCKET_BIND": SERVES,
    "sagemaker_containers.beta.framework.server.nginx_config_file": SERVES,
    "sagemaker_containers.beta.framework.server.nginx_config_template_file": SERVES,
    "sagemaker_containers.beta.framework.trainer.DEFAULT_FAILURE_CODE": "the runtime decides",
    "sagemaker_containers.beta.framework.trainer.SUCCESS_CODE": "the runtime decides",
    "sagemaker_containers.beta.framework.worker.env": SERVES,
}
"""Public names that the stand-ins do not have, and why."""
OTHER = {
    "sagemaker_containers.beta.framework.entry_point.install": "calls `path` `dst`",
    "sagemaker_containers.beta.framework.entry_point.run": "calls `runner_type` `runner`: both are",
    "sagemaker_containers.beta.framework.process.check_error": "`capture_error` is by name here",
}
"""Functions of the older package whose arguments have the names of the newer one, and which."""


@pytest.fixture(scope="session")
def real() -> Path:
    """The Python of an environment with the real packages, made once for a checkout."""
    folder = ROOT / f"build/toolkits-{sys.version_info[0]}.{sys.version_info[1]}"
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build/toolkits.lock", "w") as lock:  # tests run side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = " ".join((*REAL, *IMPORTED))
        if not (folder / "made").is_file() or (folder / "made").read_text() != made:
            run((sys.executable, "-m", "venv", "--clear", folder))
            pip = (folder / "bin/python", "-m", "pip", "install", "--quiet")
            run((*pip, *IMPORTED))
            # Not built, which would take a compiler: but for one that is only imported, their
            # modules are pure Python.
            run((*pip[:3], "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest",
                 folder / "sdist", *REAL))  # fmt: skip
            code = "import sysconfig; print(sysconfig.get_path('purelib'))"
            site = Path(run((folder / "bin/python", "-c", code)).strip())
            for archive in (folder / "sdist").glob("*.tar.gz"):
                unpack(archive, site)
            (site / "gethostname.py").write_text("")
            (folder / "made").write_text(made)
    return folder / "bin/python"


def unpack(archive: Path, site: Path) -> None:
    """Put the packages below a source archive's ``src`` where Python finds them."""
    with tarfile.open(archive) as file:
        for member in file:
            _, _, name = member.name.partition("/src/")
            if name.endswith(".py") and (data := file.extractfile(member)):
                (site / name).parent.mkdir(parents=True, exist_ok=True)
                (site / name).write_bytes(data.read())


def run(command: Sequence[str | Path], **environ: str) -> str:
    done = subprocess.run(command, env=environ or None, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def names(python: Path | str, base: Base, **environ: str) -> dict[str, list[str] | None]:
    listed = (python, "-W", "ignore", "-c", LIST, json.dumps(MODULES))
    found: dict[str, list[str] | None] = json.loads(run(listed, **base.environ, **environ))
    return found


@pytest.mark.timeout(600)
def test_every_public_name_of_the_real_packages_is_here(real: Path, base: Base) -> None:
    theirs = names(real, base, **OLD)
    ours = names(sys.executable, base, PYTHONPATH=str(PACKAGE / "inject"))
    assert len(theirs) > 300
    assert theirs.keys() - ours.keys() == ABSENT.keys()


@pytest.mark.timeout(600)
def test_functions_take_what_those_of_the_real_packages_take(real: Path, base: Base) -> None:
    theirs = names(real, base, **OLD)
    ours = names(sys.executable, base, PYTHONPATH=str(PACKAGE / "inject"))
    different = {
        name: (wanted, given)
        for name, wanted in theirs.items()
        if wanted is not None
        and (given := ours.get(name)) is not None
        and given != ["_", "__"]  # refuses to work
        and given[: len(wanted)] != wanted
    }
    assert different.keys() == OTHER.keys()


def job(base: Base) -> Base:
    base.write("input/config/inputdataconfig.json", {"training": {"TrainingInputMode": "File"}})
    groups = [{"instance_group_name": "g", "instance_type": "ml.c5.large", "hosts": ["algo-1"]}]
    base.write(
        "input/config/resourceconfig.json",
        {
            **{"current_host": "algo-1", "hosts": ["algo-1"], "current_group_name": "g"},
            **{"current_instance_type": "ml.c5.large", "instance_groups": groups},
            "network_interface_name": "eth0",
        },
    )
    base.environ["TRAINING_JOB_NAME"] = "job-1"
    return base.script(SHOW)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "hyperparameters",
    [
        {},
        {"a": "1", "lr": "1e-3", "text": '"x y"', "list": "[1, null]", "d": '{"k": true}'},
        {
            **{"sagemaker_program": '"train.py"', "sagemaker_job_name": '"job-1"'},
            **{"sagemaker_container_log_level": "30", "sagemaker_region": '"eu-west-1"'},
            **{"sagemaker_estimator": '"RLEstimator"', "flag": "true", "raw": "plain text"},
            "sagemaker_s3_output": '"file:///nowhere"',
        },
    ],
)
def test_a_job_has_the_values_that_the_real_package_finds(
    real: Path, base: Base, hyperparameters: dict[str, str]
) -> None:
    job(base).hyperparameters(**hyperparameters)
    result = base.run()
    assert result.status == 0, result.log
    ours: list[Any] = json.loads(result.out)
    theirs: list[Any] = json.loads(run((real, "-c", SHOW), **base.environ))
    for found in (ours, theirs):
        found[0]["topology"] = found[0]["topology"] or None
        found[2]["SM_TRAINING_ENV"] = json.loads(found[2]["SM_TRAINING_ENV"])
        del found[2]["SM_TRAINING_ENV"]["topology"]
    assert ours == theirs


@pytest.mark.timeout(600)
def test_arrays_are_encoded_as_by_the_real_package(real: Path, base: Base) -> None:
    program = (
        "from sagemaker_training import encoders\n"
        "for array in ([[1, 2], [3, 4]], [1.5, 2.5], [['a', 'b\"c,']]):\n"
        "    for kind in ('application/x-npy', 'text/csv', 'application/json'):\n"
        "        coded = encoders.encode(array, kind)\n"
        "        print(repr(coded), repr(encoders.decode(coded, kind)))\n"
    )
    theirs = run((real, "-c", program), **base.environ)
    folder = base.path("alone")  # NumPy, and none of their packages
    folder.mkdir()
    for found in real.parent.parent.glob("lib/python*/site-packages/numpy*"):
        (folder / found.name).symlink_to(found)
    path = f"{PACKAGE / 'inject'}:{folder}"
    assert run((sys.executable, "-c", program), **base.environ, PYTHONPATH=path) == theirs

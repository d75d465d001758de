"""What a job's code, or the engine's profile, must not take from the runtime."""

from __future__ import annotations

import pytest

from tests.docker.container import Ml, run
from tests.jobs.test_isolation import LOADED, NAMES, TRACES

PYTHONPATH = ("-e", "PYTHONPATH=/opt/ml/code", "-e", "SAGEMAKER_PROGRAM=train.py")
"""As AWS's images set it."""
ENTRIES = {
    "train": (("train",), ()),
    "default": ((), ()),
    "train as PID 1": ((), ("--entrypoint", "train")),
    "train as PID 1, with the platform's argument": (("train",), ("--entrypoint", "train")),
    "sm-runtime train as PID 1": (("train", "train"), ("--entrypoint", "sm-runtime")),
}


@pytest.fixture(scope="module")
def names(cpu_image: str) -> list[str]:
    """What a module of a script may be called: the image's Python starts nevertheless."""
    loaded = run(cpu_image, "python", "-c", LOADED).out.split()
    return [name for name in NAMES if name not in loaded and "customize" not in name]


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_job_may_have_modules_of_any_name(
    cpu_image: str, ml: Ml, names: list[str], entry: str
) -> None:
    for name in names:
        ml.write(f"code/{name}.py", TRACES.format(trace="/opt/ml/trace"))
    ml.write("code/train.py", "import token\nprint(token.__file__)\n")
    command, options = ENTRIES[entry]
    result = run(cpu_image, *command, options=(*ml.mount, *PYTHONPATH, *options))
    assert (result.status, result.out) == (0, "/opt/ml/code/token.py\n"), result.err
    assert [line.split()[0] for line in ml.read("trace").splitlines()] == ["token"]


def test_a_jobs_customization_is_its_scripts_alone(cpu_image: str, ml: Ml) -> None:
    ml.write("code/sitecustomize.py", TRACES.format(trace="/opt/ml/trace"))
    ml.write("code/train.py", "import os\nprint(os.getpid())\n")
    result = run(cpu_image, options=(*ml.mount, *PYTHONPATH))
    assert result.status == 0, result.err
    assert ml.read("trace").split() == ["sitecustomize", result.out.strip()]


def test_a_script_that_python_cannot_start_leaves_a_failure(cpu_image: str, ml: Ml) -> None:
    ml.write("code/encodings.py", "")
    ml.write("code/train.py", "print('ran')")
    result = run(cpu_image, options=(*ml.mount, *PYTHONPATH))
    assert (result.status, result.out) == (1, "")
    assert ml.read("output/failure")


@pytest.mark.parametrize("init", [(), ("--init",), ("--entrypoint", "train")])
@pytest.mark.parametrize("calls", [("fallocate",), ("prctl",), ("fallocate", "prctl")])
def test_a_profile_without_fallocate_or_prctl_is_no_failure(
    cpu_image: str, ml: Ml, calls: tuple[str, ...], init: tuple[str, ...]
) -> None:
    refused = {"names": calls, "action": "SCMP_ACT_ERRNO"}
    profile = ml.write("profile.json", {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refused]})
    ml.write("code/train.py", "print('fine')")
    # The engine's own last steps need prctl, where it loads the profile before them.
    options = ("--security-opt", f"seccomp={profile}", "--security-opt", "no-new-privileges")
    result = run(
        cpu_image, options=(*ml.mount, *options, *init, "-e", "SAGEMAKER_PROGRAM=train.py")
    )
    assert (result.status, result.out) == (0, "fine\n"), result.err
    assert ml.exists("output/success")
    assert "tini" not in result.err
    assert ("without fallocate" in result.err) == ("fallocate" in calls)

"""What a program's name may stand for, with the real command."""

from __future__ import annotations

import subprocess

from tests.harness import RUNTIME, Base


def test_a_module_of_the_standard_library_is_never_run_in_place_of_a_program_that_is_missing(
    base: Base,
) -> None:
    """Nor where something is installed first, or a folder without __init__.py has its name."""
    program = "code"
    base.write("code/train.py", "print('ran')")
    base.write("code/requirements.txt", "")
    checked = base.run("check", command=RUNTIME, SAGEMAKER_PROGRAM=program)
    assert (checked.status, checked.out.count(b"\n")) == (1, 1)
    result = base.run(SAGEMAKER_PROGRAM=program)
    assert (result.status, result.out) == (1, b""), result.log
    expected = f"program {program!r} is not in {base.path('code')}, which has"
    assert base.failure().startswith(f"CodeError: {expected}")
    assert expected in checked.out.decode()
    assert "standard library" in base.failure()


def test_an_installed_module_runs_where_it_is_named_as_one(base: Base) -> None:
    base.write("code/train.py", "print('ran')")
    for program in ("-m pip", "pip.__main__", "pip._internal.cli.main:main"):
        result = base.run(SAGEMAKER_PROGRAM=program)
        assert (result.status, b"Usage:" in result.out) == (0, True), result.log


def test_a_module_of_the_code_may_have_the_name_of_one_of_the_standard_library(
    base: Base,
) -> None:
    base.write("code/code.py", "print('mine')")
    base.write("code/queue/__init__.py", "")
    base.write("code/queue/train.py", "print('mine')")
    for program in ("code", "-m code", "queue.train"):
        result = base.run(SAGEMAKER_PROGRAM=program)
        assert (result.status, result.out) == (0, b"mine\n"), result.log


def test_folders_that_are_deeper_than_python_recurses_are_no_harm(base: Base) -> None:
    folder = base.path("code", *"d" * 1500)
    subprocess.run(("mkdir", "-p", folder), check=True)
    result = base.run(SAGEMAKER_PROGRAM="train.py")
    subprocess.run(("rm", "-rf", base.path("code")), check=True)  # pytest would recurse
    assert "Traceback" not in result.log
    assert base.failure().startswith("CodeError: program 'train.py' is not in")

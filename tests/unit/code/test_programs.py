"""What a program's name may stand for."""

from __future__ import annotations

import pytest

from tests import dry
from tests.harness import Base


@pytest.mark.parametrize(
    "program",
    ["code", "-m code", "code:interact", "http.server", "-m this", "os", "-m abc", "sys", "six.py"],
)
@pytest.mark.parametrize("beside", ["", "requirements.txt", "code/data.txt"])
def test_a_module_of_the_standard_library_is_never_run_in_place_of_a_program_that_is_missing(
    base: Base, program: str, beside: str
) -> None:
    """Nor where something is installed first, or a folder without __init__.py has its name."""
    base.write("code/train.py", "print('ran')")
    if beside:
        base.write(f"code/{beside}", "")
    checked = dry.look(base, "check", SAGEMAKER_PROGRAM=program)
    assert (checked.status, checked.out.count("\n")) == (1, 1)
    result = dry.train(base, SAGEMAKER_PROGRAM=program)
    assert (result.status, result.commands) == (1, []), result.log
    expected = f"program {program!r} is not in {base.path('code')}, which has"
    assert base.failure().startswith(f"CodeError: {expected}")
    assert expected in checked.out
    library = "standard library"
    assert (library in base.failure()) == (program != "six.py")


@pytest.mark.parametrize("program", ["pytest", "packaging"])
def test_a_lone_word_is_no_module_of_the_image_unless_that_is_said(
    base: Base, program: str
) -> None:
    base.write("code/train.py", "print('ran')")
    result = dry.train(base, SAGEMAKER_PROGRAM=program)
    assert (result.status, result.commands) == (1, [])
    assert f"to run the installed module, write '-m {program}'" in base.failure()

"""How a program's name, and what the code folder holds, decide what is run."""

from __future__ import annotations

from typing import Any

import pytest

from sm_runtime.code.entry import Found, program_words
from sm_runtime.job.errors import CodeError, ConfigError, LaunchError

PYTHON = "/usr/bin/python3"
ARGUMENTS = ("--key", "a b", "", 'it\'s "x"', "$(touch /tmp/PWN)", "a\nb", "\udce9")
FILE: dict[str, Any] = {"is_file": True}
BASH: dict[str, Any] = {**FILE, "shell": "/bin/bash"}
CRLF = ("-c", 'eval "$(tr -d "\\015" < "$0")"')


def found(**facts: Any) -> Found:
    return Found(**{"folder": "/opt/ml/code", **facts})


@pytest.mark.parametrize(
    ("program", "facts", "expected"),
    [
        ("train.py", FILE, (PYTHON, "train.py")),
        ("src/my train.py", FILE, (PYTHON, "src/my train.py")),
        ("my.pyfoo.py", FILE, (PYTHON, "my.pyfoo.py")),
        ("-x.py", FILE, (PYTHON, "./-x.py")),
        ("/usr/lib/job/train.py", FILE, (PYTHON, "/usr/lib/job/train.py")),
        # A setup.py beside it does not make a script that is there a module.
        ("train.py", {**FILE, "package": True, "installs": True}, (PYTHON, "train.py")),
        ("train.py", {"package": True, "installs": True}, (PYTHON, "-m", "train")),
        ("./src/train.py", {"package": True, "installs": True}, (PYTHON, "-m", "src.train")),
        ("-m pkg.mod", {"module_here": True}, (PYTHON, "-m", "pkg.mod")),
        ("-m pkg.mod", {"module_installed": True}, (PYTHON, "-m", "pkg.mod")),
        ("pkg.mod", {"module_here": True}, (PYTHON, "-m", "pkg.mod")),
        ("pkg.mod", {"installs": True}, (PYTHON, "-m", "pkg.mod")),
        ("train", {"module_here": True}, (PYTHON, "-m", "train")),
        ("train", {"package": True, "installs": True}, (PYTHON, "-m", "train")),
        ("-m train", {"module_installed": True}, (PYTHON, "-m", "train")),
        ("pkg.mod", {"module_installed": True}, (PYTHON, "-m", "pkg.mod")),
        ("pkg.mod", FILE | {"executable": True, "binary": True}, ("./pkg.mod",)),
        ("train.sh", BASH, ("/bin/bash", "./train.sh")),
        ("train.sh", {**BASH, "executable": True}, ("/bin/bash", "./train.sh")),
        ("a/train.sh", FILE, ("/bin/sh", "./a/train.sh")),
        ("/x/train.sh", FILE, ("/bin/sh", "/x/train.sh")),
        (
            "train.sh",
            {**BASH, "interpreter": ("/bin/zsh", "-e"), "interpreter_exists": True},
            ("/bin/zsh", "-e", "./train.sh"),
        ),
        ("train.sh", {**BASH, "interpreter": ("/no/such",)}, ("/bin/bash", "./train.sh")),
        ("train.sh", {**BASH, "dos_lines": True}, ("/bin/bash", *CRLF, "./train.sh")),
        (
            "train.sh",
            {
                **BASH,
                "dos_lines": True,
                "interpreter": ("/usr/bin/env", "bash"),
                "interpreter_exists": True,
            },
            ("/usr/bin/env", "bash", *CRLF, "./train.sh"),
        ),
        ("train", {**FILE, "executable": True, "binary": True}, ("./train",)),
        ("./bin/train", {**FILE, "executable": True, "binary": True}, ("./bin/train",)),
        ("/usr/local/bin/t", {**FILE, "executable": True, "binary": True}, ("/usr/local/bin/t",)),
        (
            "train",
            {
                **FILE,
                "executable": True,
                "interpreter": ("/usr/bin/perl",),
                "interpreter_exists": True,
            },
            ("./train",),
        ),
        (
            "train.R",
            {**FILE, "interpreter": ("/usr/bin/env", "Rscript"), "interpreter_exists": True},
            ("/usr/bin/env", "Rscript", "./train.R"),
        ),
        (
            "train",
            {
                **FILE,
                "executable": True,
                "dos_lines": True,
                "interpreter": ("/usr/bin/env", "python3"),
                "interpreter_exists": True,
            },
            ("/usr/bin/env", "python3", "./train"),
        ),
        ("train", {**BASH, "executable": True}, ("/bin/bash", "./train")),
    ],
)
def test_what_is_run(program: str, facts: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert program_words(program, found(**facts), PYTHON) == expected


@pytest.mark.parametrize(
    ("program", "facts", "expected"),
    [
        (
            None,
            {"files": ("a.py", "lib/b.py")},
            "set the environment variable SAGEMAKER_PROGRAM or the hyperparameter"
            " sagemaker_program to one of the files of /opt/ml/code, which has a.py, lib/b.py",
        ),
        ("", {"folder_exists": False}, "/opt/ml/code, which does not exist"),
        (None, {"files": ()}, "which has no files"),
        (
            "trian.py",
            {"files": ("README.md", "src/train.py")},
            "program 'trian.py' is not in /opt/ml/code, which has README.md, src/train.py;"
            " did you mean 'src/train.py'?",
        ),
        (
            "train.py --epochs 3",
            {"files": ("x",)},
            "arguments are given as hyperparameters",
        ),
        ("train", {"files": tuple(f"f{n:02}" for n in range(14))}, "f08, f09 and 4 more"),
        ("-m pkg.mod", {"files": ()}, "program '-m pkg.mod' is not in /opt/ml/code"),
        ("pkg.mod:main", {"files": ()}, "program 'pkg.mod:main' is not in /opt/ml/code"),
        ("old.py", {"files": ("x",), "elsewhere": "/opt/ml/code"}, "SM_RUNTIME_CODE_PREFERENCE"),
        ("train.py", {"files": (), "module_here": True}, "is not in /opt/ml/code"),
        ("code", {"files": (), "module_standard": True}, "standard library is not run"),
        ("-m code", {"files": (), "module_standard": True}, "standard library is not run"),
        (
            "code:interact",
            {"files": (), "module_standard": True, "installs": True, "package": True},
            "standard library is not run",
        ),
        ("six", {"files": (), "module_installed": True}, "write '-m six'"),
        ("six", {"files": (), "module_installed": True, "installs": True}, "write '-m six'"),
        ("six", {"files": (), "installs": True}, "is not in /opt/ml/code"),
        ("../train.py", FILE, "outside of the code folder"),
        ("a/../../train.py", FILE, "outside of the code folder"),
        ("train", FILE, "cannot be executed: set its x bit"),
        ("train", {**FILE, "binary": True}, "cannot be executed: set its x bit"),
        (
            "train",
            {**FILE, "executable": True, "interpreter": ("/no/such",)},
            "asks for the interpreter /no/such in its first line",
        ),
    ],
)
def test_what_cannot_be_run_is_one_sentence(
    program: str | None, facts: dict[str, Any], expected: str
) -> None:
    with pytest.raises((ConfigError, CodeError)) as caught:
        program_words(program, found(**facts), PYTHON)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("program", ["train.py", "-m x", "x:f"])
def test_python_without_an_interpreter_is_an_error(program: str) -> None:
    facts = found(is_file=program.endswith(".py"), module_here=True)
    with pytest.raises(LaunchError, match=r"sys\.executable is empty"):
        program_words(program, facts, "")

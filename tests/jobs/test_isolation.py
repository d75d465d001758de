"""Modules of the job's never take the place of the runtime's, whatever they are called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.harness import Base, package_alone
from tests.jobs.test_install import wheel
from tests.wheels import built_wheel

SCRIPTS = Path(sysconfig.get_path("scripts"))
COMMANDS = {
    "train": (str(SCRIPTS / "train"),),
    "sm-runtime train": (str(SCRIPTS / "sm-runtime"), "train"),
    "python -m sm_runtime train": (sys.executable, "-m", "sm_runtime", "train"),
}
CUSTOMIZE = ("sitecustomize", "usercustomize")
NAMES = sorted(
    {
        *(name for name in sys.stdlib_module_names if find_spec(name)),
        *(*CUSTOMIZE, "isal", "boto3", "obstore", "packaging", "tomli"),
    }
)
"""What a job's module may be called: each may be one that the runtime imports."""

TRACES = """
import posix
_trace = posix.open({trace!r}, posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND)
posix.write(_trace, (__name__ + " " + str(posix.getpid()) + chr(10)).encode())
posix.close(_trace)
"""
"""What a module of the job's does: it leaves its name and the process; built-in modules alone."""


class Hostile:
    """A folder of modules named like the standard library's; each leaves a trace when imported."""

    def __init__(self, folder: Path, names: Iterable[str] = NAMES, more: str = "") -> None:
        self.folder, self._trace = folder, folder.parent / f"{folder.name}.trace"
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            text = TRACES.format(trace=str(self._trace)) + more
            (folder / f"{name}.py").write_text(text, encoding="utf-8")

    def imported_by(self, pid: int) -> list[str]:
        """Return the names of the modules that a process has imported."""
        lines = self._trace.read_text().splitlines() if self._trace.exists() else []
        return [line.split()[0] for line in lines if int(line.split()[1]) == pid]

    @property
    def imported(self) -> set[str]:
        """The names of the modules that any process has imported."""
        lines = self._trace.read_text().splitlines() if self._trace.exists() else []
        return {line.split()[0] for line in lines}


LOADED = """
import sys
for name, module in list(sys.modules.items()):
    if getattr(getattr(module, "__spec__", None), "origin", None) not in ("built-in", "frozen"):
        print(name.partition(".")[0])
"""
"""Prints what a Python has imported from files before its script."""


def imported_at_the_start(folder: Path, *command: str, python: str = sys.executable) -> set[str]:
    (folder / "loaded.py").write_text(LOADED)
    done = subprocess.run(
        (python, *command), cwd=folder, capture_output=True, text=True, check=True
    )
    return {*done.stdout.split(), *CUSTOMIZE}


@pytest.fixture(scope="module")
def of_python(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names that a plain Python imports before its script: with them no script can start."""
    return imported_at_the_start(tmp_path_factory.mktemp("start"), "loaded.py")


@pytest.fixture(scope="module")
def of_dash_m(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Those that ``python -m`` imports before the module."""
    return imported_at_the_start(tmp_path_factory.mktemp("dash-m"), "-m", "loaded")


def names_for(command: str, of_python: set[str], of_dash_m: set[str]) -> list[str]:
    """Return the names under which the job can run, started by ``command``."""
    started = of_python | (of_dash_m if "-m" in command else set())
    return [name for name in NAMES if name not in started]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_module_on_pythonpath_is_imported_by_the_runtime_whatever_its_name(
    base: Base, tmp_path: Path, command: str, of_python: set[str], of_dash_m: set[str]
) -> None:
    hostile = Hostile(tmp_path / "hostile", names_for(command, of_python, of_dash_m))
    base.script("import token; print(token.__file__)")
    base.environ["PYTHONPATH"] = str(hostile.folder)
    running = base.start(command=COMMANDS[command])
    result = running.wait()
    assert result.status == 0, result.log
    assert hostile.imported_by(running.pid) == []
    # The script has its PYTHONPATH, as it would have without the runtime.
    assert result.out.decode().strip() == str(hostile.folder / "token.py")


@pytest.mark.parametrize("command", list(COMMANDS)[:2])
def test_what_keeps_python_from_starting_is_the_scripts_failure_and_not_the_runtimes(
    base: Base, tmp_path: Path, command: str, of_python: set[str]
) -> None:
    hostile = Hostile(tmp_path / "hostile", more="raise ImportError(__name__)\n")
    base.script("print('ran')")
    base.environ["PYTHONPATH"] = str(hostile.folder)
    running = base.start(command=COMMANDS[command])
    result = running.wait()
    assert result.status != 0
    assert hostile.imported_by(running.pid) == []
    assert base.failure() and base.failure_json()["exit"] == result.status


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", CUSTOMIZE)
def test_a_jobs_customization_runs_in_its_script_and_not_in_the_runtime(
    base: Base, tmp_path: Path, command: str, name: str
) -> None:
    hostile = Hostile(tmp_path / "hostile", [name])
    base.script("import os; print(os.getpid())").environ["PYTHONPATH"] = str(hostile.folder)
    running = base.start(command=COMMANDS[command])
    result = running.wait()
    assert result.status == 0, result.log
    # A virtual environment has no user's customization.
    runs = [] if name == "usercustomize" and sys.prefix != sys.base_prefix else [name]
    assert hostile.imported_by(int(result.out)) == runs
    # `python -m` has run it before it runs the runtime, which then starts anew without it.
    assert hostile.imported_by(running.pid) == (runs if "-m" in command else [])


@pytest.mark.parametrize("command", COMMANDS)
def test_no_module_in_the_working_folder_is_imported_by_the_runtime(
    base: Base, tmp_path: Path, command: str, of_python: set[str], of_dash_m: set[str]
) -> None:
    hostile = Hostile(tmp_path / "hostile", names_for(command, of_python, of_dash_m))
    base.script("print('fine')")
    process = subprocess.run(
        (
            "sh",
            "-c",
            'cd "$1"; shift; echo $$; exec "$@"',
            "sh",
            hostile.folder,
            *COMMANDS[command],
        ),
        env=base.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    pid, out = process.stdout.splitlines()
    assert out == "fine"
    assert hostile.imported_by(int(pid)) == []


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONHOME": "{folder}"},
        {"PYTHONSTARTUP": "{folder}/types.py"},
        {"PYTHONUSERBASE": "{folder}"},
        {"PYTHONINSPECT": "1"},
        {"PYTHONWARNINGS": "error"},
        {"PYTHONBREAKPOINT": "types.x", "PYTHONDEVMODE": "1"},
        {"PYTHONPLATLIBDIR": "none"},
        {"PYTHONCASEOK": "1", "PYTHONVERBOSE": "1"},
        {"PYTHONUTF8": "1 -c 'print(1)'"},
        {"IFS": "/", "CDPATH": "/tmp", "ENV": "{folder}/profile"},
    ],
    ids=lambda found: "-".join(found),
)
def test_no_variable_leads_the_runtime_elsewhere(
    base: Base, tmp_path: Path, variables: dict[str, str]
) -> None:
    hostile = Hostile(tmp_path / "hostile")
    (hostile.folder / "profile").write_text("echo profile; exit 9\n")
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = hostile.folder / "lib" / version / "site-packages"
    Hostile(packages).folder.joinpath("user.pth").write_text("import sitecustomize\n")
    found = {name: value.format(folder=hostile.folder) for name, value in variables.items()}
    base.script("print('fine')")
    # A script in a shell: Python would obey the variables, as it does without the runtime.
    base.script("echo fine", name="train.sh")
    result = base.run(command=COMMANDS["train"], **found)
    assert (result.status, result.out) == (0, b"fine\n"), result.log
    assert hostile.imported == set()
    assert "import " not in result.log and "Warning" not in result.log


def test_the_runtime_writes_no_bytecode_where_it_must_not(base: Base, tmp_path: Path) -> None:
    package = shutil.copytree(
        package_alone(tmp_path) / "sm_runtime",
        tmp_path / "copy" / "sm_runtime",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    base.script("")
    for command in ("train", "python -m sm_runtime train"):
        result = base.run(
            command=COMMANDS[command],
            PYTHONPATH=str(package.parent),
            PYTHONDONTWRITEBYTECODE="1",
        )
        assert result.status == 0, result.log
    assert not list(package.rglob("*.pyc"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment without the runtime, whose Python has nothing installed."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    return folder


@pytest.mark.parametrize("how", ["script", "-m"])
def test_a_runtime_that_only_pythonpath_shows_is_as_well_isolated(
    base: Base, tmp_path: Path, bare: Path, how: str, of_python: set[str], of_dash_m: set[str]
) -> None:
    """As ``pip install --target`` leaves it."""
    beside = package_alone(tmp_path)
    (beside / "bin").mkdir()
    for name in ("train", "sm-runtime", "sm-runtime-python"):
        text = (SCRIPTS / name).read_text()
        path = beside / "bin" / name
        path.write_text(text.replace(sys.executable, str(bare / "bin/python"), 1))
        path.chmod(0o755)
    names = names_for("-m" if how == "-m" else "", of_python, of_dash_m)
    hostile = Hostile(tmp_path / "hostile", names)
    (beside / "boto3.py").write_text("")  # what is installed with it is found
    command = (str(beside / "bin/train"),)
    if how == "-m":
        command = (str(bare / "bin/python"), "-m", "sm_runtime", "train")
    base.script("print('fine')").environ["PYTHONPATH"] = f"{hostile.folder}:{beside}"
    running = base.start(command=command)
    result = running.wait()
    assert (result.status, result.out) == (0, b"fine\n"), result.log
    assert hostile.imported_by(running.pid) == []


@pytest.mark.parametrize("variable", ["HOME", "PYTHONUSERBASE"])
def test_a_runtime_among_the_users_own_packages_runs_and_finds_what_is_beside_it(
    base: Base, tmp_path: Path, variable: str
) -> None:
    """As ``pip install --user`` leaves it: -I alone would not look there."""
    own = tmp_path / ".local"
    install = ("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--prefix", own)
    beside = [wheel(tmp_path / "wheels", name, "1.99") for name in ("boto3", "obstore")]
    for archive in (built_wheel(), *beside):
        subprocess.run((sys.executable, *install, "--ignore-installed", archive), check=True)
    python = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    command = own / "bin/sm-runtime-python"
    command.write_text(command.read_text().replace(sys.executable, str(python), 1))
    loaded = imported_at_the_start(tmp_path, "loaded.py", python=str(python))
    hostile = Hostile(tmp_path / "hostile", [name for name in NAMES if name not in loaded])
    base.environ |= {"HOME": str(tmp_path), "PYTHONPATH": str(hostile.folder)}
    if variable == "PYTHONUSERBASE":
        base.environ |= {"HOME": "/nowhere", variable: str(own)}
    running = base.script("print('fine')").start(command=(str(own / "bin/train"),))
    result = running.wait()
    assert (result.status, result.out) == (0, b"fine\n"), result.log
    assert hostile.imported_by(running.pid) == []
    # The extra beside it counts as installed.
    base.environ["SAGEMAKER_SUBMIT_DIRECTORY"] = "s3://bucket/key"
    checked = base.run("check", command=(str(own / "bin/sm-runtime"),))
    assert (checked.status, checked.out) == (0, b"no problem found\n")


def test_the_commands_can_be_linked_to_and_named_by_any_path(base: Base, tmp_path: Path) -> None:
    base.script("print('fine')")
    link = tmp_path / "a link"
    link.symlink_to(SCRIPTS / "train")
    (tmp_path / "second").symlink_to("a link")
    for command in (str(link), str(tmp_path / "second"), os.path.relpath(SCRIPTS / "train", "/")):
        result = base.run(command=(command,))
        assert (result.status, result.out) == (0, b"fine\n"), result.log
    result = base.run(command=("train",), PATH=f"{SCRIPTS}:{os.environ['PATH']}")
    assert (result.status, result.out) == (0, b"fine\n"), result.log
    result = base.run(command=("sh", "-c", f'cd "{SCRIPTS}"; sh train'))
    assert (result.status, result.out) == (0, b"fine\n"), result.log


def test_a_runtime_process_is_called_train(base: Base) -> None:
    """In ``ps`` and to ``pkill``, however it was started."""
    base.script("import os; print(open(f'/proc/{os.getppid()}/comm').read(), end='')")
    for command in COMMANDS.values():
        assert base.run(command=command).out == b"train\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_platforms_argument_may_follow_any_entry_point(base: Base, command: str) -> None:
    """``ENTRYPOINT ["sm-runtime", "train"]`` and ``docker run IMAGE train``."""
    base.script("print('fine')")
    result = base.run(command=(*COMMANDS[command], "train"))
    assert (result.status, result.out) == (0, b"fine\n"), result.log


@pytest.mark.parametrize(
    "words", [("train", "train", "train"), ("train", "serve"), ("serve", "1"), ("train", "--bogus")]
)
def test_other_arguments_are_errors_of_usage(base: Base, words: tuple[str, ...]) -> None:
    result = base.script("print('ran')").run(command=(str(SCRIPTS / "sm-runtime"), *words))
    assert (result.status, result.out) == (2, b""), result.log
    assert result.log.startswith("usage: sm-runtime")


# --- the programs that the runtime starts beside the script


HOOK = """
import os, json, signal, sys
from sm_runtime import framework
def main():
    print("hook", json.dumps(framework.command()[1:]), flush=True)
    framework.run_script()
"""


def test_a_framework_hook_gets_the_standard_library_whatever_the_code_holds(
    base: Base, tmp_path: Path, of_python: set[str]
) -> None:
    names = [name for name in NAMES if name not in of_python]
    hostile = Hostile(base.path("code"), names)
    base.write("code/my_framework/training.py", HOOK)
    base.script("import token; print(token.__file__)")
    result = base.run(SAGEMAKER_TRAINING_MODULE="my_framework.training:main")
    assert result.status == 0, result.log
    code = base.path("code")
    assert result.out.decode().splitlines() == ['hook ["train.py"]', str(code / "token.py")]
    assert hostile.imported == {"token"}


def test_requirements_are_installed_whatever_the_code_holds(
    base: Base, tmp_path: Path, of_python: set[str], bare: Path
) -> None:
    hostile = Hostile(base.path("code"), [name for name in NAMES if name not in of_python])
    wheel(base.path("code/wheels"), "sm-runtime-probe", "1.0")
    base.write("code/requirements.txt", "sm-runtime-probe\n")
    base.script("import sm_runtime_probe; print('fine')")
    packages = tmp_path / "packages"
    environ = {"PIP_TARGET": str(packages), "PYTHONPATH": str(packages)}
    result = base.run(command=COMMANDS["train"], **environ)
    assert result.status == 0, result.log
    assert hostile.imported == set()


def test_a_rank_imports_what_its_script_would_without_mpi(base: Base, of_python: set[str]) -> None:
    hostile = Hostile(base.path("code"), [name for name in NAMES if name not in of_python])
    base.script("import token, sys; print(token.__file__, __file__, sys.argv, sys.path[0])")
    base.hyperparameters(sagemaker_mpi_enabled="true", sagemaker_program='"train.py"')
    result = base.run(command=COMMANDS["train"])
    assert result.status == 0, result.log
    code = base.path("code")
    line = f"{code / 'token.py'} {code / 'train.py'} ['train.py'] {code}"
    assert result.out.decode().strip().endswith(line)
    assert hostile.imported == {"token"}


def test_a_rank_that_fails_shows_its_own_frames_alone(base: Base, of_python: set[str]) -> None:
    Hostile(base.path("code"), [name for name in NAMES if name not in of_python])
    base.script("def learn():\n    raise ValueError('no more apples')\nlearn()\n")
    base.hyperparameters(sagemaker_mpi_enabled="true")
    result = base.run(command=COMMANDS["train"])
    assert result.status == 1
    assert "rank.py" not in result.log
    assert base.failure().startswith("ValueError: no more apples")

"""What pip is started for, what it is told, and what its failures say: real pips and wheels."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import socket
import subprocess
import threading
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from tests.harness import package_alone

# Runs ``install`` in the interpreter at hand, and says what pip was started with.
DRIVER = """
import json, os, sys
sys.path.append(sys.argv[2])
from sm_runtime import installer
from sm_runtime.errors import InstallError
from sm_runtime.install import install
from sm_runtime.model import Cluster, Job, Options
from sm_runtime.paths import Paths
from sm_runtime.source import fetch

asked = json.loads(sys.argv[1])
job = Job(
    paths=Paths(asked["base"]),
    cluster=Cluster(current_host="algo-1", hosts=("algo-1",)),
    program=asked["program"],
    options=Options(**asked["options"]),
)
runs, outputs = [], []

def run(argv, env, cwd):
    runs.append({"argv": argv, "env": dict(env)})
    status, tail = installer.run_captured(argv, env, cwd)
    outputs.append(tail.decode())
    return status, tail

answer = {"runs": runs, "outputs": outputs, "error": None, "summary": None}
try:
    done = install(job, fetch(job, {}), dict(os.environ), sys.executable, run)
    answer |= {"summary": done.summary, "environ": dict(done.environ)}
except InstallError as error:
    answer["error"] = str(error)
print(json.dumps(answer))
"""


@dataclass
class Answer:
    runs: list[dict[str, Any]]
    outputs: list[str]
    error: str | None
    summary: str | None
    environ: dict[str, str] = field(default_factory=dict)
    trace: str = ""


def wheel(
    folder: Path, name: str, version: str, *needs: str, files: dict[str, str] | None = None
) -> Path:
    """Write a wheel by hand: a zip with a module, its metadata and their hashes."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    content = {
        f"{module}.py": f"VERSION = {version!r}\n",
        **(files or {}),
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {n}\n" for n in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},{digest(text)},{len(text)}\n" for path, text in content.items())
    content[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for each, text in content.items():
            archive.writestr(each, text)
    return path


def digest(text: str) -> str:
    raw = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Interpreter:
    """A virtual environment; ``unpack`` puts a distribution into it without pip."""

    def __init__(self, root: Path) -> None:
        venv.create(root, with_pip=False, symlinks=True)
        self.python = root / "bin" / "python"
        self.site = next((root / "lib").glob("python*/site-packages"))
        # The pip of the tests' own interpreter: it is compiled already.
        pip = distribution("pip")
        for name in ("pip", f"pip-{pip.version}.dist-info"):
            (self.site / name).symlink_to(str(pip.locate_file(name)))

    def unpack(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(self.site)

    def names(self) -> set[str]:
        return {p.name.partition(".dist-info")[0] for p in self.site.glob("*.dist-info")}


class Case:
    """One job: its code folder, the index it may use, and what it finds installed."""

    def __init__(self, root: Path, interpreter: Interpreter) -> None:
        self.root = root
        self.python = interpreter
        self.program = "train.py"
        self.options: dict[str, Any] = {}
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(root / "home"),
            "TMPDIR": str(root / "tmp"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.write("train.py", "")
        (root / "tmp").mkdir()

    def write(self, name: str, text: str) -> Path:
        path = self.root / "ml" / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def asks(self, text: str) -> None:
        self.write("requirements.txt", text)

    def has(self, name: str, version: str, *needs: str) -> None:
        self.python.unpack(wheel(self.root / "installed", name, version, *needs))

    def start(self, *prefix: str) -> subprocess.Popen[str]:
        asked = {
            "base": str(self.root / "ml"),
            "program": self.program,
            "options": self.options,
        }
        return subprocess.Popen(
            [
                *prefix,
                str(self.python.python),
                "-c",
                DRIVER,
                json.dumps(asked),
                str(package_alone(self.root)),
            ],
            env=self.environ,
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def install(self, *prefix: str) -> Answer:
        return finished(self.start(*prefix))


def finished(process: subprocess.Popen[str]) -> Answer:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return Answer(**json.loads(out))


class Handler(http.server.SimpleHTTPRequestHandler):
    """A package index (PEP 503) over a folder with a folder of wheels for each project."""

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Index:
    folder: Path
    url: str

    def add(self, name: str, version: str, *needs: str) -> Path:
        return wheel(self.folder / "simple" / name, name, version, *needs)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    folder = tmp_path / "index"
    (folder / "simple").mkdir(parents=True)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Handler(*args, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield Index(folder, f"http://127.0.0.1:{server.server_port}/simple/")
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path, Interpreter(tmp_path / "venv"))


@pytest.fixture
def indexed(case: Case, index: Index) -> Case:
    case.environ["PIP_INDEX_URL"] = index.url
    return case


# --- when pip is not started


def test_without_requirements_nothing_is_done_and_that_is_said(case: Case) -> None:
    answer = case.install()
    assert answer.summary == f"no requirements.txt in {case.root}/ml/code"
    assert answer.runs == []


SATISFIED = {
    "nothing but comments": "# nothing\n\n   # more\n",
    "a name": "alpha\n",
    "another spelling of the name": "Alpha\n",
    "specifiers": "alpha >=1.0, <2 ; python_version >= '3.8'  # why\n",
    "a marker that does not apply": "nosuchpackage==9; python_version < '3'\n",
    "continued lines": "alpha \\\n  >=1.0\n",
    "an included file": "-r more.txt\n--requirement=more.txt\n",
    "a constraints file": "alpha\n-c limits.txt\n",
    "a variable": "alpha==${ALPHA_VERSION}\n",
    "hashes": "alpha==1.5 --hash=sha256:abc \\\n    --hash=sha256:def\n",
    "options": "--index-url http://127.0.0.1:1/\n--pre\n-f /nowhere\nalpha\n",
    "a byte order mark": "\ufeffalpha\n",
    "a dependency that is there": "beta[]\n",
}


@pytest.mark.parametrize("text", SATISFIED.values(), ids=SATISFIED.keys())
def test_pip_is_not_started_when_all_is_installed(case: Case, text: str) -> None:
    case.has("alpha", "1.5")
    case.has("beta", "2.0", "alpha>=1", "gamma; extra == 'fancy'", "delta; python_version<'3'")
    case.write("more.txt", "beta\n")
    case.write("limits.txt", "alpha<2\nunrelated==1\n")
    case.environ["ALPHA_VERSION"] = "1.5"
    case.asks(text)
    answer = case.install()
    assert answer.error is None
    assert answer.runs == []
    assert answer.summary == "all that requirements.txt asks for is installed already"


UNSATISFIED = {
    "another version": "alpha==1.6\n",
    "an upper limit of a constraints file": "alpha\n-c limits.txt\n",
    "a dependency that is not there": "needy\n",
    "a URL": "alpha @ file://{root}/wheels/alpha-1.5-py3-none-any.whl\n",
    "a local path": "{root}/wheels/alpha-1.5-py3-none-any.whl\n",
    "an extra": "beta[fancy]\n",
}


@pytest.mark.parametrize("text", UNSATISFIED.values(), ids=UNSATISFIED.keys())
def test_pip_is_started_once_for_what_is_not_certainly_there(indexed: Case, text: str) -> None:
    indexed.has("alpha", "1.5")
    indexed.has("beta", "2.0")
    indexed.has("needy", "1.0", "nosuchpackage")
    indexed.write("limits.txt", "alpha<1\n")
    wheel(indexed.root / "wheels", "alpha", "1.5")
    indexed.asks(text.format(root=indexed.root))
    assert len(indexed.install().runs) == 1


def test_installation_can_be_switched_off(case: Case) -> None:
    case.asks("nosuchpackage")
    case.options["install"] = False
    answer = case.install()
    assert answer.summary == "requirements.txt is not installed (SM_RUNTIME_INSTALL is off)"
    assert answer.runs == []


# --- what is installed


@pytest.mark.parametrize("program", ["train.py", "run.sh", "tool", "pkg.mod", "-m pkg.mod"])
def test_requirements_are_installed_for_every_kind_of_program_and_only_once(
    indexed: Case, index: Index, program: str
) -> None:
    index.add("alpha", "1.5", "beta")
    index.add("beta", "2.0")
    indexed.program = program
    indexed.write(program.split()[-1].replace("pkg.mod", "pkg/mod.py"), "")
    indexed.asks("alpha")
    first = indexed.install()
    assert first.error is None
    assert "requirements.txt installed in" in str(first.summary)
    assert {"alpha-1.5", "beta-2.0"} <= indexed.python.names()
    assert len(first.runs) == 1
    assert indexed.install().runs == []


def test_another_file_can_be_named_and_has_to_exist(indexed: Case, index: Index) -> None:
    index.add("alpha", "1.5")
    indexed.options["requirements"] = "deps/train.txt"
    assert "deps/train.txt is not in" in str(indexed.install().error)
    indexed.write("deps/train.txt", "alpha")
    assert "deps/train.txt installed" in str(indexed.install().summary)


def test_a_wheels_folder_needs_no_socket(case: Case) -> None:
    case.environ["PIP_INDEX_URL"] = "http://127.0.0.1:1/simple/"
    case.environ["CA_REPOSITORY_ARN"] = "arn:aws:codeartifact:eu-west-1:1:repository/d/r"
    wheel(case.root / "ml" / "code" / "wheels", "alpha", "1.5", "beta")
    wheel(case.root / "ml" / "code" / "wheels", "beta", "2.0")
    case.asks("alpha")
    trace = case.root / "trace"
    answer = case.install("strace", "-f", "-qq", "-e", "trace=network", "-o", str(trace))
    assert answer.error is None
    assert "from wheels/ alone" in str(answer.summary)
    assert {"alpha-1.5", "beta-2.0"} <= case.python.names()
    # pip opens and binds a socket of its own on import, to see whether there is IPv6.
    calls = ("connect(", "sendto(", "sendmsg(", "sendmmsg(")
    lines = trace.read_text().splitlines()
    assert [line for line in lines if any(call in line for call in calls)] == []


def test_what_the_wheels_folder_lacks_is_named(case: Case) -> None:
    wheel(case.root / "ml" / "code" / "wheels", "alpha", "1.5")
    case.asks("# two\nalpha\nbeta>=2\n")
    assert case.install().error == "requirements.txt line 3: no match for beta>=2 in wheels/"


def test_a_package_is_built_from_a_copy_and_installed(case: Case) -> None:
    built = wheel(case.root / "built", "job", "1.0")
    case.write("pyproject.toml", '[build-system]\nrequires=[]\nbuild-backend="backend"\n'
               'backend-path=["."]\n')  # fmt: skip
    case.write(
        "backend.py",
        "import shutil\n"
        "def build_wheel(directory, config=None, metadata=None):\n"
        "    open('litter', 'w').close()\n"
        f"    shutil.copy({str(built)!r}, directory)\n"
        f"    return {built.name!r}\n",
    )
    before = sorted(os.listdir(case.root / "ml" / "code"))
    assert case.install().runs == []  # a script with a pyproject.toml for its tools
    case.program = "job"
    answer = case.install()
    assert answer.error is None
    assert "--no-build-isolation" in answer.runs[0]["argv"]
    assert "job-1.0" in case.python.names()
    assert sorted(os.listdir(case.root / "ml" / "code")) == before


def test_requirements_and_a_setup_py_are_both_installed(indexed: Case, index: Index) -> None:
    index.add("alpha", "1.5")
    indexed.asks("alpha")
    indexed.write("setup.py", "raise SystemExit('the setup.py was run')")
    answer = indexed.install()
    assert "alpha-1.5" in indexed.python.names()
    assert len(answer.runs) == 2
    assert answer.error == (
        "the package in the code folder: no match for setuptools>=40.8.0, which it needs"
    )


def test_runtimes_on_one_host_install_one_after_another_and_once(
    indexed: Case, index: Index
) -> None:
    index.add("alpha", "1.5")
    indexed.asks("alpha")
    answers = [finished(process) for process in [indexed.start() for _ in range(4)]]
    assert [answer.error for answer in answers] == [None] * 4
    assert sum(len(answer.runs) for answer in answers) == 1


# --- the installed framework


def test_another_version_of_the_framework_is_refused_before_pip_starts(case: Case) -> None:
    case.has("tensorflow", "2.15.1")
    case.asks("tensorflow==2.13.0")
    answer = case.install()
    assert answer.error == (
        "requirements.txt line 1: tensorflow==2.13.0 conflicts with the installed tensorflow"
        " 2.15.1; set SM_RUNTIME_ALLOW_FRAMEWORK_CHANGE=1 to let it be replaced"
    )
    assert answer.runs == []


@pytest.mark.parametrize("text", ["tensorflow-gpu==2.13.0", "TensorFlow<2.15", "tf-nightly"])
def test_another_build_of_the_framework_is_refused_as_well(case: Case, text: str) -> None:
    case.has("tensorflow-cpu", "2.15.1")
    case.asks(f"-r more.txt\n{text}")
    case.write("more.txt", "# nothing")
    answer = case.install()
    assert f"line 2: {text} conflicts with the installed tensorflow-cpu 2.15.1" in str(answer.error)


def test_the_framework_is_replaced_where_that_is_allowed(indexed: Case, index: Index) -> None:
    index.add("tensorflow", "2.13.0")
    indexed.has("tensorflow", "2.15.1")
    indexed.asks("tensorflow==2.13.0")
    indexed.options["allow_framework_change"] = True
    assert indexed.install().error is None
    assert "tensorflow-2.13.0" in indexed.python.names()


def test_tensorflow_cpu_is_a_tensorflow(case: Case) -> None:
    case.has("tensorflow-cpu", "2.15.1")
    case.asks("tensorflow>=2.10")
    assert case.install().runs == []


def test_a_package_that_needs_tensorflow_does_not_bring_a_second_one(
    indexed: Case, index: Index
) -> None:
    index.add("tensorflow", "2.15.1")
    index.add("tensorflow", "2.18.0")
    index.add("tuner", "1.0", "tensorflow>=2.0")
    indexed.has("tensorflow-cpu", "2.15.1")
    indexed.asks("tuner\ntensorflow>=2.10")
    answer = indexed.install()
    assert answer.error is None
    names = indexed.python.names()
    assert "tuner-1.0" in names
    assert {name for name in names if name.startswith("tensorflow")} == {"tensorflow_cpu-2.15.1"}


def test_a_package_that_needs_another_framework_is_refused_with_the_reason(
    indexed: Case, index: Index
) -> None:
    index.add("tuner", "1.0", "torch<2")
    index.add("torch", "1.13.0")
    indexed.has("torch", "2.1.0+cu118")
    indexed.asks("tuner")
    error = str(indexed.install().error)
    assert "tuner 1.0 depends on torch<2" in error
    assert "SM_RUNTIME_ALLOW_FRAMEWORK_CHANGE=1" in error
    assert "torch-2.1.0+cu118" in indexed.python.names()


# --- failures


def test_a_package_that_does_not_exist_is_named_with_its_line(indexed: Case) -> None:
    indexed.program = "run.sh"
    indexed.write("run.sh", "echo started")
    indexed.asks("nosuchpackage==9")
    assert indexed.install().error == "requirements.txt line 1: no match for nosuchpackage==9"


def test_the_versions_that_there_are_and_who_needs_what_are_told(
    indexed: Case, index: Index
) -> None:
    index.add("alpha", "1.5", "nosuchpackage>3")
    indexed.asks("alpha==2")
    assert indexed.install().error == (
        "requirements.txt line 1: no match for alpha==2 (there are 1.5)"
    )
    indexed.asks("alpha")
    assert indexed.install().error == (
        "requirements.txt: no match for nosuchpackage>3, which a package that it asks for needs"
    )


def test_an_index_that_refuses_is_named_by_its_host(case: Case) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        case.environ["PIP_INDEX_URL"] = f"http://me:pass@127.0.0.1:{port}/simple/"
        case.asks("alpha")
        answer = case.install()
    assert answer.error == (
        f"requirements.txt: the package index 127.0.0.1:{port} cannot be reached:"
        " Connection refused"
    )


def test_pips_own_report_of_an_index_out_of_reach_is_understood(case: Case) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        case.environ["PIP_INDEX_URL"] = f"http://127.0.0.1:{port}/simple/"
        case.environ["PIP_FIND_LINKS"] = str(case.root / "tmp")  # so pip might do without it
        case.asks("alpha")
        answer = case.install()
    assert answer.error == (
        f"requirements.txt: the package index 127.0.0.1:{port} cannot be reached:"
        " Connection refused"
    )
    assert answer.runs[0]["env"]["PIP_RETRIES"] == "1"
    assert answer.runs[0]["env"]["PIP_DEFAULT_TIMEOUT"] == "8"


def test_an_index_that_never_answers_fails_while_people_still_watch(case: Case) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        case.environ["PIP_INDEX_URL"] = f"http://{host}/simple/"
        case.environ["PIP_DEFAULT_TIMEOUT"] = "1"
        case.asks("alpha")
        answer = case.install()
    assert "the package index 127.0.0.1" in str(answer.error)
    assert "timed out" in str(answer.error)


def test_the_users_own_settings_of_pip_are_kept(indexed: Case, index: Index) -> None:
    index.add("alpha", "1.5")
    conf = indexed.root / "pip.conf"
    conf.write_text(f"[global]\nindex-url = {index.url}\ntimeout = 77\n")
    del indexed.environ["PIP_INDEX_URL"]
    indexed.environ["PIP_CONFIG_FILE"] = str(conf)
    indexed.asks("alpha")
    answer = indexed.install()
    assert answer.error is None
    assert "PIP_DEFAULT_TIMEOUT" not in answer.runs[0]["env"]
    assert answer.runs[0]["env"]["PIP_RETRIES"] == "1"


def test_a_python_without_pip_is_one_clear_sentence(case: Case) -> None:
    (case.python.site / "pip").rename(case.root / "pip")
    case.asks("alpha")
    error = str(case.install().error)
    assert error.startswith("requirements.txt has to be installed, and the Python of this image")
    assert "has no pip" in error


def test_a_read_only_environment_gets_a_folder_of_its_own_that_the_script_sees(
    indexed: Case, index: Index
) -> None:
    index.add("alpha", "1.5")
    indexed.asks("alpha")
    indexed.python.site.chmod(0o555)
    # Root may write anywhere by this capability alone (capabilities(7)).
    others = ("setpriv", "--bounding-set=-dac_override") if os.geteuid() == 0 else ()
    answer = indexed.install(*others)
    assert answer.error is None
    assert "alpha-1.5" not in indexed.python.names()
    shown = subprocess.run(
        [*others, str(indexed.python.python), "-c", "import alpha; print(alpha.VERSION)"],
        env={**indexed.environ, **answer.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.stdout == "1.5\n", shown.stderr
    assert indexed.install(*others).runs == []


@pytest.mark.parametrize(
    ("arn", "why"),
    [
        ("arn:aws:codeartifact:eu-west-1:1:repository/d/r", "boto3, which fetches its token"),
        ("arn:aws:s3:::bucket", "is not arn:<partition>:codeartifact:"),
    ],
)
def test_a_private_repository_that_cannot_be_asked_is_one_sentence(
    case: Case, arn: str, why: str
) -> None:
    case.environ["CA_REPOSITORY_ARN"] = arn
    case.asks("alpha")
    answer = case.install()
    assert why in str(answer.error)
    assert answer.runs == []

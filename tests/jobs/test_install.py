"""What pip is started for, what it is told, and what its failures say: real pips and wheels."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import socket
import subprocess
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from tests.harness import package_alone
from tests.httpd import answering

# Runs ``install`` in the interpreter at hand, and says what pip was started with.
DRIVER = """
import json, logging, os, sys
sys.path.append(sys.argv[2])
import subprocess
from sm_runtime.job.errors import InstallError
from sm_runtime.install import install
from sm_runtime.job.model import Cluster, Job, Options
from sm_runtime.job.model import Paths
from sm_runtime.code.fetch import fetch

asked = json.loads(sys.argv[1])
job = Job(
    paths=Paths(asked["base"]),
    cluster=Cluster(current_host="algo-1", hosts=("algo-1",)),
    program=asked["program"],
    options=Options(**asked["options"]),
)
runs, outputs, log = [], [], []

class Keep(logging.Handler):
    def emit(self, record):
        log.append(f"{record.levelname} {record.getMessage()}")

logging.getLogger("sm_runtime").addHandler(Keep())
logging.getLogger("sm_runtime").setLevel(logging.INFO)

def run(argv, env, cwd):
    runs.append({"argv": argv, "env": dict(env)})
    done = subprocess.run(argv, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    outputs.append(done.stdout.decode())
    return done.returncode, done.stdout

answer = {"runs": runs, "outputs": outputs, "log": log, "error": None, "summary": None}
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
    log: list[str]
    error: str | None
    summary: str | None
    environ: dict[str, str] = field(default_factory=dict)
    trace: str = ""


def wheel(
    folder: Path,
    name: str,
    version: str,
    *needs: str,
    files: dict[str, str] | None = None,
    commands: str = "",
) -> Path:
    """Write a wheel by hand: a zip with a module, or ``files``, its metadata and their hashes."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    content = {
        **({f"{module}.py": f"VERSION = {version!r}\n"} if files is None else files),
        f"{info}/entry_points.txt": f"[console_scripts]\n{commands}\n",
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

    def pip(self, *arguments: str) -> None:
        words = (str(self.python), "-m", "pip", *arguments)
        env = {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        subprocess.run(words, env=env, check=True, capture_output=True)

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
    with answering(partial(Handler, directory=str(folder))) as url:
        yield Index(folder, f"{url}/simple/")


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


@pytest.mark.parametrize("wish", ["a variable", "pip.conf", "a line"])
def test_a_wheels_folder_needs_no_socket_where_the_user_wants_no_index(
    case: Case, wish: str
) -> None:
    case.environ["PIP_INDEX_URL"] = "http://127.0.0.1:1/simple/"
    case.environ["CA_REPOSITORY_ARN"] = "arn:aws:codeartifact:eu-west-1:1:repository/d/r"
    wheel(case.root / "ml" / "code" / "wheels", "alpha", "1.5", "beta")
    wheel(case.root / "ml" / "code" / "wheels", "beta", "2.0")
    case.asks("--no-index\nalpha" if wish == "a line" else "alpha")
    if wish == "a variable":
        case.environ["PIP_NO_INDEX"] = "1"
    elif wish == "pip.conf":
        case.environ["PIP_CONFIG_FILE"] = str(case.root / "pip.conf")
        (case.root / "pip.conf").write_text("[install]\nno-index = true\n")
    trace = case.root / "trace"
    answer = case.install("strace", "-f", "-qq", "-e", "trace=network", "-o", str(trace))
    assert answer.error is None
    assert {"alpha-1.5", "beta-2.0"} <= case.python.names()
    # pip opens and binds a socket of its own on import, to see whether there is IPv6.
    calls = ("connect(", "sendto(", "sendmsg(", "sendmmsg(")
    lines = trace.read_text().splitlines()
    assert [line for line in lines if any(call in line for call in calls)] == []


def test_a_wheels_folder_is_one_source_beside_the_index(indexed: Case, index: Index) -> None:
    index.add("beta", "2.0")
    index.add("alpha", "1.4")
    wheel(indexed.root / "ml" / "code" / "wheels", "alpha", "1.5", "beta")
    indexed.asks("alpha")
    answer = indexed.install()
    assert answer.error is None
    assert {"alpha-1.5", "beta-2.0"} <= indexed.python.names()
    assert "INFO requirements.txt: Successfully installed alpha-1.5 beta-2.0" in answer.log


def refusing(case: Case) -> str:
    """Have the job use an index at a port where nothing listens; return its address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    case.environ["PIP_INDEX_URL"] = f"http://{address}/simple/"
    return address


def test_wheels_alone_are_installed_where_the_index_cannot_be_reached(case: Case) -> None:
    refusing(case)
    wheel(case.root / "ml" / "code" / "wheels", "alpha", "1.5", "beta")
    wheel(case.root / "ml" / "code" / "wheels", "beta", "2.0")
    case.asks("alpha")
    assert case.install().error is None
    assert {"alpha-1.5", "beta-2.0"} <= case.python.names()


def test_wheels_alone_are_installed_where_a_private_repository_gives_no_token(case: Case) -> None:
    case.environ["CA_REPOSITORY_ARN"] = "arn:aws:codeartifact:eu-west-1:1:repository/d/r"
    wheel(case.root / "ml" / "code" / "wheels", "alpha", "1.5")
    case.asks("alpha")
    answer = case.install()
    assert answer.error is None
    assert "alpha-1.5" in case.python.names()
    (warning,) = (line for line in answer.log if line.startswith("WARNING"))
    assert "boto3, which fetches its token" in warning
    assert "packages come from wheels/ alone" in warning


def test_what_the_wheels_folder_lacks_is_named(case: Case) -> None:
    wheel(case.root / "ml" / "code" / "wheels", "alpha", "1.5")
    case.asks("# two\nalpha\nbeta>=2\n")
    case.environ["PIP_NO_INDEX"] = "1"
    lacks = "Could not find a version that satisfies the requirement beta>=2 (from versions: none)"
    assert case.install().error == f"requirements.txt: pip ended with status 1: {lacks}"
    del case.environ["PIP_NO_INDEX"]
    address = refusing(case)
    assert case.install().error == (
        f"requirements.txt: pip ended with status 1: the package index http://{address}/simple/"
        f" cannot be reached: [Errno 111] Connection refused; {lacks}"
    )


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
    assert "the package in the code folder: pip ended with status 1: " in str(answer.error)
    assert "the requirement setuptools>=40.8.0" in str(answer.error)


@pytest.mark.parametrize(
    ("program", "count"), [("train.py", 2), ("tool", 2), ("pkg.mod", 2), ("run.sh", 1)]
)
def test_a_setup_py_beside_a_shell_script_is_not_installed(
    indexed: Case, index: Index, program: str, count: int
) -> None:
    index.add("alpha", "1.5")
    indexed.asks("alpha")
    indexed.program = program
    indexed.write(program.replace("pkg.mod", "pkg/mod.py"), "")
    indexed.write("setup.py", "raise SystemExit('the setup.py was run')")
    answer = indexed.install()
    assert "alpha-1.5" in indexed.python.names()
    assert len(answer.runs) == count
    assert (answer.error is None) == (count == 1)


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


# --- what is ours

OURS = "train = sm_runtime.__main__:train\nsm-runtime = sm_runtime.__main__:main"
THEIRS = "train = sagemaker_training.cli.train:main"
OUR_FILES = {"sagemaker_tensorflow/__init__.py": "OURS = True\n"}


@pytest.fixture
def owned(indexed: Case, index: Index) -> Case:
    """A job in an environment where pip has installed a package of the runtime's name and files."""
    # Its modules are those of the checkout, or of the wheel that is tested, as in every test here.
    path = wheel(indexed.root / "own", "sm-runtime", "0.5", files=OUR_FILES, commands=OURS)
    indexed.python.pip("install", "--no-index", str(path))
    index.add("alpha", "1.5")
    wheel(index.folder / "simple/sagemaker-training", "sagemaker-training", "5.1", commands=THEIRS)
    wheel(index.folder / "simple/tuner", "tuner", "1.0", "sagemaker-training")
    wheel(index.folder / "simple/sm-runtime", "sm-runtime", "9.0", files={}, commands=THEIRS)
    wheel(
        index.folder / "simple/impostor",
        "impostor",
        "2.0",
        files={"sagemaker_tensorflow/__init__.py": "OURS = False\n", "impostor.py": ""},
    )
    return indexed


def own_files(case: Case) -> dict[str, bytes]:
    bin_folder = case.python.python.parent
    paths = [
        bin_folder / "train",
        bin_folder / "sm-runtime",
        *(case.python.site / n for n in OUR_FILES),
    ]
    assert all(os.access(path, os.X_OK) for path in paths[:2])
    return {path.name: path.read_bytes() for path in paths}


HELD = {
    "a name": "sagemaker-training\nalpha\n",
    "a version": "alpha\nSageMaker_Training[x] == 5.1 ; python_version > '3'  # why\n",
    "a URL": "sagemaker-training @ file://{index}/sagemaker-training/"
    "sagemaker_training-5.1-py3-none-any.whl\nalpha\n",
    "an included file": "-r more.txt\nalpha\n",
    "another version of ours": "sm-runtime==9.0\nalpha\n",
    "relative links, a constraint and hashes": "-f links\n-c limits.txt\nsagemaker-containers\n"
    "alpha==1.5 --hash=sha256:{digest}\n",
}


@pytest.mark.parametrize("text", HELD.values(), ids=HELD.keys())
def test_a_package_that_would_replace_ours_is_held_back_and_the_rest_is_installed(
    owned: Case, index: Index, text: str
) -> None:
    before = own_files(owned)
    path = index.folder / "simple/alpha/alpha-1.5-py3-none-any.whl"
    values = {"index": path.parents[1], "digest": hashlib.sha256(path.read_bytes()).hexdigest()}
    owned.write("more.txt", "sagemaker-training>=5\n")
    owned.write("limits.txt", "alpha<2\n")
    if "links" in text:
        (owned.root / "ml/code/links").mkdir()
        (owned.root / "ml/code/links" / path.name).write_bytes(path.read_bytes())
        path.unlink()
    owned.asks(text.format(**values))
    answer = owned.install()
    assert answer.error is None
    names = owned.python.names()
    assert "alpha-1.5" in names
    assert "sm_runtime-0.5" in names
    assert not {name for name in names if name.startswith("sagemaker")}
    assert own_files(owned) == before
    (warning,) = (line for line in answer.log if line.startswith("WARNING"))
    assert "is held back" in warning
    assert " line " in warning


def test_where_all_else_is_there_a_package_that_is_held_back_starts_no_pip(owned: Case) -> None:
    owned.asks("sagemaker-training\n")
    answer = owned.install()
    assert answer.runs == []
    assert "is held back" in answer.log[0]


def test_our_own_version_and_its_extras_are_not_held_back(owned: Case) -> None:
    owned.asks("sm-runtime[s3]>=0.4\nsm-runtime\n")
    answer = owned.install()
    assert answer.error is None
    assert not [line for line in answer.log if line.startswith("WARNING")]


def test_no_setting_of_pip_replaces_ours_by_another_one_of_its_name(owned: Case) -> None:
    before = own_files(owned)
    owned.environ["PIP_UPGRADE"] = "1"
    owned.asks("sm-runtime\nalpha\n")
    owned.install()
    assert "sm_runtime-0.5" in owned.python.names()
    assert own_files(owned) == before


@pytest.mark.parametrize(
    ("wanted", "owner"), [("tuner", "sagemaker-training 5.1"), ("impostor", "impostor 2.0")]
)
def test_what_a_dependency_has_replaced_of_ours_is_put_back(
    owned: Case, wanted: str, owner: str
) -> None:
    before = own_files(owned)
    owned.asks(wanted)
    answer = owned.install()
    assert answer.error is None
    assert {name.partition("-")[0] for name in owned.python.names()} > {wanted}
    assert own_files(owned) == before
    (warning,) = (line for line in answer.log if line.startswith("WARNING"))
    assert warning.startswith(f"WARNING {owner} replaced files of sm-runtime, which were put back")


def test_ours_is_put_back_when_pip_removes_it_or_fails(owned: Case) -> None:
    """The other package was there before ours, so that an upgrade of it removes the command."""
    older = wheel(owned.root / "older", "sagemaker-training", "4.0", commands=THEIRS)
    before = own_files(owned)
    owned.python.pip("install", "--no-index", str(older))
    (owned.python.python.parent / "train").write_bytes(before["train"])
    wheel(owned.root / "index/simple/newer", "newer", "1.0", "sagemaker-training>=5")
    owned.asks("newer")
    owned.write("setup.py", "raise SystemExit('the setup.py was run')")
    answer = owned.install()
    assert "the package in the code folder: " in str(answer.error)
    assert "sagemaker_training-5.1" in owned.python.names()
    assert own_files(owned) == before


def checked(case: Case, path: str) -> tuple[int, str]:
    """Run ``sm-runtime check`` with a PATH; return its status and what it says."""
    done = subprocess.run(
        [str(case.python.python), "-m", "sm_runtime", "check"],
        env={
            **case.environ,
            "PATH": path,
            "PYTHONPATH": str(package_alone(case.root)),
            "SAGEMAKER_BASE_DIR": str(case.root / "ml"),
            "SAGEMAKER_PROGRAM": "train.py",
        },
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def command(folder: Path, text: str) -> str:
    folder.mkdir()
    (folder / "train").write_text(text)
    (folder / "train").chmod(0o755)
    return str(folder)


def test_the_check_says_whose_command_train_is(owned: Case) -> None:
    binaries = str(owned.python.python.parent)
    fine = (0, "no problem found\n")
    assert checked(owned, binaries) == fine
    assert checked(owned, "/nowhere") == fine
    wrapper = command(owned.root / "wrapper", '#!/bin/sh\nexec sm-runtime train "$@"\n')
    assert checked(owned, f"{wrapper}:{binaries}") == fine
    other = command(owned.root / "other", "#!/bin/sh\nexec python -m job\n")
    assert checked(owned, f"{other}:{binaries}") == (
        1,
        f"the command train on PATH, {other}/train, is not that of sm-runtime: remove it, then"
        " install sm-runtime again (see docs/migration.md)\n",
    )
    newer = owned.root / "index/simple/sagemaker-training/sagemaker_training-5.1-py3-none-any.whl"
    owned.python.pip("install", "--no-index", str(newer))
    status, said = checked(owned, binaries)
    assert status == 1
    assert f"the command train on PATH, {binaries}/train, is that of sagemaker-training 5.1" in said
    assert said.count("\n") == 1
    status, said = checked(owned, "/nowhere")
    assert (status, said.count("\n")) == (1, 1)
    assert said.startswith(f"{binaries}/train is no longer that of sm-runtime: install")
    owned.python.pip("uninstall", "--yes", "sagemaker-training")
    assert checked(owned, binaries) == (
        1,
        f"{binaries}/train is gone: install sm-runtime again (see docs/migration.md)\n",
    )


# --- failures


def test_a_package_that_does_not_exist_is_named(indexed: Case) -> None:
    indexed.program = "run.sh"
    indexed.write("run.sh", "echo started")
    indexed.asks("nosuchpackage==9")
    assert indexed.install().error == (
        "requirements.txt: pip ended with status 1: Could not find a version that satisfies the"
        " requirement nosuchpackage==9 (from versions: none)"
    )


def test_the_versions_that_there_are_and_who_needs_what_are_told(
    indexed: Case, index: Index
) -> None:
    index.add("alpha", "1.5", "nosuchpackage>3")
    indexed.asks("alpha==2")
    assert "requirement alpha==2 (from versions: 1.5)" in str(indexed.install().error)
    indexed.asks("alpha")
    assert "requirement nosuchpackage>3 (from alpha)" in str(indexed.install().error)


def test_an_index_that_refuses_is_named_by_its_host(case: Case) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        case.environ["PIP_INDEX_URL"] = f"http://me:pass@127.0.0.1:{port}/simple/"
        case.asks("alpha")
        answer = case.install()
    assert (
        f"the package index http://***@127.0.0.1:{port}/simple/ cannot be reached:"
        " [Errno 111] Connection refused"
    ) in str(answer.error)


def test_pips_own_report_of_an_index_out_of_reach_is_understood(case: Case) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        case.environ["PIP_INDEX_URL"] = f"http://127.0.0.1:{port}/simple/"
        case.environ["PIP_FIND_LINKS"] = str(case.root / "tmp")  # so pip might do without it
        case.asks("alpha")
        answer = case.install()
    assert (
        f"the package index http://127.0.0.1:{port}/simple/ cannot be reached:"
        " [Errno 111] Connection refused"
    ) in str(answer.error)
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
    assert "the package index http://127.0.0.1" in str(answer.error)
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

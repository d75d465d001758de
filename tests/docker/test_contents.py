"""What is in the images, and what must not be."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.container import LOCKED, ROOT, USUAL, docker, run, scripts_docker
from tests.wheels import built_wheel, packages

SECRETS = re.compile(
    rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=\s]{64}"
    rb"|\b(?:AKIA|ASIA)[A-Z2-7]{16}\b(?<!EXAMPLE)"  # as AWS's own documents end theirs
    rb"|\b(?:ghp|gho|ghs)_[A-Za-z0-9]{36}\b|\bgithub_pat_[A-Za-z0-9_]{50}"
    rb"|\bpypi-AgEIcHlwaS[A-Za-z0-9_-]{30}"
)
FORBIDDEN_NAMES = re.compile(
    r"(^|/)(ssh_host_[a-z0-9]+_key|id_(rsa|dsa|ecdsa|ed25519)|\.netrc|\.pypirc|\.aws/credentials"
    r"|\.docker/config\.json|\.git-credentials|\.git|\.env)$"
)
# Prints how many bytes the wheels of TensorFlow, Horovod and mpi4py, and of what they require, hold
# by their own lists, and the bytecode that comes of them.
WHEELS = """
import importlib.metadata, os, re
def normal(name):
    return re.sub("[-_.]+", "-", name).lower()
found = {normal(d.metadata["Name"]): d for d in importlib.metadata.distributions()}
todo, done, total = ["tensorflow-cpu", "horovod", "mpi4py"], set(), 0
while todo:
    name = todo.pop()
    if name in found and name not in done:
        done.add(name)
        for requirement in found[name].requires or ():
            if "extra ==" not in requirement:
                todo.append(normal(re.match("[A-Za-z0-9._-]+", requirement)[0]))
        for file in found[name].files:
            total += file.size or 0
            source = file.locate()
            for cached in source.parent.glob(f"__pycache__/{source.stem}.cpython-*.pyc"):
                total += cached.stat().st_size if source.suffix == ".py" else 0
print(total)
"""
# Each of two ranks prints its number and the sum of 1 and 2.
MPI4PY = """
import sys
from mpi4py import MPI
rank = MPI.COMM_WORLD.rank
total = MPI.COMM_WORLD.allreduce(float(rank + 1))
sys.stdout.write(f"rank {rank} {total}\\n")
"""
HOROVOD = """
import sys, horovod.tensorflow as hvd, tensorflow as tf
hvd.init()
total = hvd.allreduce(tf.constant(float(hvd.rank() + 1)), op=hvd.Sum)
sys.stdout.write(f"rank {hvd.rank()} {float(total)}\\n")
"""
# Prints the hash of each file of the runtime, by its name in the wheel.
INSTALLED = """
import hashlib, importlib.metadata, json
found = {}
for file in importlib.metadata.distribution("sm-runtime").files:
    parts = file.parts
    if "__pycache__" not in parts and not parts[0].endswith(".dist-info"):
        name = "bin/" + parts[-1] if parts[-2] == "bin" else str(file)
        found[name] = hashlib.sha256(file.read_binary()).hexdigest()
print(json.dumps(found))
"""
FROM_BASE = "# --- what does not come from this repository"


def own_layers(image: str, base: str, folder: Path) -> Iterator[tarfile.TarFile]:
    """Yield the archives of the layers that the image adds to its base."""
    count = int(docker("inspect", "-f", "{{len .RootFS.Layers}}", base))
    docker("save", "-o", str(folder / "saved.tar"), image)
    with tarfile.open(folder / "saved.tar") as saved:
        manifest = saved.extractfile("manifest.json")
        assert manifest is not None
        for name in json.load(manifest)[0]["Layers"][count:]:
            stream = saved.extractfile(name)
            assert stream is not None
            with tarfile.open(fileobj=stream) as layer:
                yield layer
    (folder / "saved.tar").unlink()


def find(image: str, *conditions: str) -> list[str]:
    """Return the paths below / for which find's conditions hold."""
    result = run(image, "find", "/", "-xdev", *conditions, options=("--entrypoint", ""))
    return sorted(line for line in result.out.splitlines() if not line.startswith("/proc"))


def test_no_layer_holds_a_secret(cpu_image: str, base: str, tmp_path: Path) -> None:
    found, files = [], 0
    for layer in own_layers(cpu_image, base, tmp_path):
        for member in layer:
            if FORBIDDEN_NAMES.search(member.name):
                found.append(member.name)
            stream = layer.extractfile(member) if member.isfile() else None
            if stream is not None:
                files += 1
                matches = SECRETS.findall(stream.read())
                found += [f"{member.name}: {match[:40]!r}" for match in matches]
    assert files > 10_000
    assert found == []


def test_the_history_tells_no_more_than_the_dockerfile(cpu_image: str) -> None:
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", cpu_image)
    assert not re.search(r"(?i)token|password|secret|https?://", history)


def test_no_file_of_the_image_can_be_changed_by_anybody(cpu_image: str) -> None:
    assert find(cpu_image, "-type", "f", "-perm", "-0002") == []
    folders = find(cpu_image, "-type", "d", "-perm", "-0002", "!", "-perm", "-1000")
    assert folders == []
    assert find(cpu_image, "-path", "/usr/local/*", "!", "-user", "root") == []


def test_no_program_with_special_rights_is_added_to_the_bases(cpu_image: str, base: str) -> None:
    special = ("-type", "f", "-perm", "/6000")
    assert find(cpu_image, *special) == find(base, *special)


@pytest.mark.versions
def test_python_packages_fit_together_and_are_those_of_the_lock(cpu_image: str) -> None:
    assert run(cpu_image, "python", "-m", "pip", "check").status == 0
    listed = run(cpu_image, "cat", "/usr/share/sm-runtime/pip.txt").out.split()
    found = {}
    for entry in listed:
        name, _, version = entry.partition("==")
        found[re.sub(r"[-_.]+", "-", name).lower()] = version
    assert set(found) - set(LOCKED) == {"pip", "sm-runtime"}
    assert {name: found.get(name) for name in LOCKED} == LOCKED


def test_the_lists_are_those_of_the_image(cpu_image: str) -> None:
    freeze = run(cpu_image, "python", "-m", "pip", "list", "--format=freeze").out
    assert run(cpu_image, "cat", "/usr/share/sm-runtime/pip.txt").out == freeze
    packages = run(cpu_image, "dpkg-query", "-W", "-f", r"${Package}=${Version}\n").out
    assert run(cpu_image, "cat", "/usr/share/sm-runtime/debian.txt").out == packages
    for name in ("openmpi-bin", "tini", "curl"):
        assert f"\n{name}=" in f"\n{packages}"


@pytest.mark.versions
def test_the_packages_that_scripts_expect_can_be_imported(cpu_image: str) -> None:
    modules = [
        *("boto3", "botocore", "h5py", "isal", "mpi4py.MPI", "numpy", "PIL", "psutil"),
        *("scipy.linalg", "sklearn.ensemble", "sm_runtime", "tensorboard.main", "tensorflow"),
    ]
    if "horovod" in LOCKED:
        modules += ["horovod.tensorflow", "horovod.tensorflow.keras"]
    program = f"import {', '.join(modules)}; print(tensorflow.__version__)"
    result = run(cpu_image, "python", "-W", "error::ImportWarning", "-c", program)
    assert (result.status, result.out) == (0, f"{LOCKED['tensorflow-cpu']}\n"), result.err


@pytest.mark.versions
@pytest.mark.parametrize(
    "options",
    [
        (),
        (
            *("--user", "1000", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"),
            *("--security-opt", "no-new-privileges", "--network", "none"),
        ),
    ],
    ids=["root", "restricted"],
)
@pytest.mark.parametrize(
    "program",
    [
        pytest.param(MPI4PY, id="mpi4py"),
        pytest.param(HOROVOD, id="horovod", marks=pytest.mark.needs("horovod")),
    ],
)
def test_two_ranks_reduce(
    cpu_image: str, tmp_path: Path, program: str, options: tuple[str, ...]
) -> None:
    (tmp_path / "ranks.py").write_text(program, encoding="utf-8")
    tmp_path.chmod(0o755)
    command = ("mpirun", "-np", "2", "--oversubscribe", "python", "/ranks/ranks.py")
    result = run(cpu_image, *command, options=("-v", f"{tmp_path}:/ranks:ro", *options))
    assert result.status == 0, result.err
    assert sorted(result.out.splitlines()) == ["rank 0 3.0", "rank 1 3.0"]
    complaints = r"(?i)warning|vader|psec|unable|not permitted"
    assert [line for line in result.err.splitlines() if re.search(complaints, line)] == []


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_labels_say_what_the_image_is(request: pytest.FixtureRequest, base: str, kind: str) -> None:
    image = request.getfixturevalue(f"{kind}_image")
    labels = json.loads(docker("inspect", "-f", "{{json .Config.Labels}}", image))
    version = run(image, "sm-runtime", "--version").out.split()[-1]
    prefix = "org.opencontainers.image."
    assert labels[f"{prefix}title"] == f"sm-runtime:{kind}"
    assert labels[f"{prefix}version"] == version
    assert labels[f"{prefix}licenses"] == "Apache-2.0"
    assert labels[f"{prefix}base.name"] == base
    capability = "com.amazonaws.sagemaker.capabilities."
    assert (
        labels[f"{capability}accept-bind-to-port"] == labels[f"{capability}multi-models"] == "true"
    )
    names = ("created", "revision", "description", "source")
    assert {f"{prefix}{name}" for name in names} <= set(labels)


def test_the_label_of_the_sources_is_an_address_without_credentials(cpu_image: str) -> None:
    tag = "sm-runtime-test:source"
    try:
        scripts_docker("cpu", "-t", tag, SOURCE="https://user:password@example.org/team/code.git")
        labels = json.loads(docker("inspect", "-f", "{{json .Config.Labels}}", tag))
    finally:
        docker("rmi", "-f", tag)
        scripts_docker("cpu")
    assert labels["org.opencontainers.image.source"] == "https://example.org/team/code"


def test_the_image_runs_train_by_default_under_an_init(cpu_image: str) -> None:
    config = json.loads(docker("inspect", "-f", "{{json .Config}}", cpu_image))
    assert config["Entrypoint"] == ["tini", "--"]
    assert config["Cmd"] == ["train"]
    assert not config.get("User") and not config.get("WorkingDir") and not config.get("Volumes")
    assert "PYTHONUNBUFFERED=1" in config["Env"]
    assert set(config["ExposedPorts"]) == {"8080/tcp", "8501/tcp"}


def test_the_runtimes_own_layers_are_small(cpu_image: str) -> None:
    """What a change of the runtime's code makes anew: the layers after the other packages'."""
    history = docker(
        "history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", cpu_image
    )
    own = []
    for line in history.splitlines():  # the newest first
        size, _, command = line.partition(" ")
        if "mkdir -p /opt/ml/code" in command:
            break
        own.append(int(size))
    assert 0 < sum(own) < 15e6


def test_the_image_is_hardly_larger_than_what_it_has_to_hold(cpu_image: str, base: str) -> None:
    def size(image: str) -> int:
        return int(docker("inspect", "-f", "{{.Size}}", image))

    history = docker(
        "history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", cpu_image
    )
    mpi = next(
        line for line in history.splitlines() if "install -y" in line and "openmpi-bin" in line
    )
    wheels = int(run(cpu_image, "python", "-c", WHEELS).out)
    assert size(cpu_image) <= 1.1 * (size(base) + int(mpi.split()[0]) + wheels)


def test_a_second_build_makes_nothing_anew(cpu_image: str) -> None:
    def build() -> str:
        scripts_docker("cpu")
        return docker("inspect", "-f", "{{.Id}}", cpu_image)

    assert build() == build()


def test_a_build_without_cache_makes_the_same_layers(cpu_image: str, base: str) -> None:
    """Those that are made here, upon the packages that were fetched: byte for byte."""

    def layers(image: str) -> list[str]:
        found: list[str] = json.loads(docker("inspect", "-f", "{{json .RootFS.Layers}}", image))
        return found

    dockerfile = ROOT / "docker/Dockerfile.cpu"
    fetched = "sm-runtime-test:packages"
    arguments, _, rest = dockerfile.read_text(encoding="utf-8").partition(FROM_BASE)
    _, heading, made_here = rest.partition("# --- Horovod, which")
    text = f"{arguments}FROM {fetched} AS packages\n{heading}{made_here}"
    tensorflow = LOCKED["tensorflow-cpu"]
    choices = (f"BASE_IMAGE={base}", f"TENSORFLOW_VERSION={tensorflow}")
    options = (*(word for choice in choices for word in ("--build-arg", choice)), str(ROOT))
    docker("build", "--target", "packages", "-t", fetched, "-f", str(dockerfile), *options)
    again = docker("build", "-q", "--no-cache", "-f", "-", *options, seconds=1500, text=text)
    below = len(layers(fetched))
    first, second = (layers(image)[below:] for image in (cpu_image, again.strip()))
    docker("rmi", "-f", fetched, again.strip())
    assert len(first) >= 5
    assert second == first


def test_the_two_dockerfiles_differ_in_their_arguments_alone() -> None:
    texts = []
    for kind in ("cpu", "gpu"):
        text = (ROOT / f"docker/Dockerfile.{kind}").read_text(encoding="utf-8")
        _, _, body = text.partition(FROM_BASE)
        texts.append(re.sub(r"( |    )NVIDIA_\w+=\S+ \\\n   ", "", body).replace(f":{kind}", ""))
    assert texts[0] == texts[1] != ""


def test_each_set_of_versions_has_its_locks_and_one_is_the_default() -> None:
    asked = {
        path.stem.removeprefix("versions-"): path.read_text(encoding="utf-8")
        for path in (ROOT / "docker").glob("versions-*.in")
    }
    assert USUAL in asked and len(asked) > 1
    for kind in ("cpu", "gpu"):
        text = (ROOT / f"docker/Dockerfile.{kind}").read_text(encoding="utf-8")
        arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.MULTILINE))
        assert f"tensorflow=={arguments['TENSORFLOW_VERSION']}\n" in asked[USUAL]
        assert f"horovod=={arguments['HOROVOD_VERSION']}\n" in asked[USUAL]
        for name, wanted in asked.items():
            lock = (ROOT / f"docker/requirements-{kind}-{name}.txt").read_text(encoding="utf-8")
            package = arguments["TENSORFLOW_PACKAGE"]
            for pin in re.findall(r"^\S+==\S+", wanted, re.MULTILINE):
                assert f"\n{pin.replace('tensorflow==', f'{package}==')} " in lock


def test_only_what_an_image_is_made_of_is_sent_to_the_daemon() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert "*" in rules
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert allowed == {
        *("LICENSE", "README.md", "docker/add-packages", "docker/requirements*"),
        *("bin", "pyproject.toml", "setup.py", *packages()),
    }


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_image_holds_every_file_of_the_wheel(request: pytest.FixtureRequest, kind: str) -> None:
    expected = {}
    with zipfile.ZipFile(built_wheel()) as wheel:
        for name in wheel.namelist():
            if ".dist-info/" not in name:
                data = hashlib.sha256(wheel.read(name)).hexdigest()
                expected[re.sub(r".*\.data/scripts/", "bin/", name)] = data
    assert "sagemaker_tensorflow/__init__.py" in expected and "bin/train" in expected
    image = request.getfixturevalue(f"{kind}_image")
    found = json.loads(run(image, "python", "-c", INSTALLED).out)
    # pip writes the interpreter's path into one of the commands.
    interpreter = run(image, "head", "-n", "1", "/usr/local/bin/sm-runtime-python").out
    assert re.fullmatch(r"#!/usr/(local/)?bin/python[0-9.]*\n", interpreter)
    assert {**found, "bin/sm-runtime-python": ""} == {**expected, "bin/sm-runtime-python": ""}

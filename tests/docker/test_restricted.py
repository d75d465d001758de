"""The image needs no root, no capability, and nothing to write to but /opt/ml and /tmp."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.docker.container import Container, Ml, run

SCRIPT = """
import os, tensorflow as tf
assert os.getuid() == 1000
model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(1)])
model.compile("sgd", "mse")
model.fit(tf.ones((8, 4)), tf.ones((8, 1)), verbose=0)
model.export(os.path.join(os.environ["SM_MODEL_DIR"], "1"))
with open(os.path.join(os.environ["SM_OUTPUT_DATA_DIR"], "notes"), "w") as file:
    file.write("fine")
"""
RESTRICTED = (
    *("--user", "1000:1000", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--network", "none", "--read-only", "--tmpfs", "/tmp"),
)
OWNED = """
import os, pathlib, signal, sys
for name in ("SM_MODEL_DIR", "SM_OUTPUT_DATA_DIR"):
    folder = pathlib.Path(os.environ[name], "deep", "er")
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    (folder / "link").symlink_to("/etc/passwd")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
if "wait" in sys.argv:
    signal.pause()
sys.exit(3 if "fail" in sys.argv else 0)
"""


def owners(top: Path) -> set[tuple[int, int]]:
    """Return the owners of the folder, of all in it, links themselves included."""
    found = [top, *top.rglob("*")]
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in found}


@pytest.fixture
def open_ml(ml: Ml) -> Ml:
    """Folders as a caller with number 1000 would have made them."""
    ml.write("code/train.py", SCRIPT)
    for path in (ml.root, *ml.root.rglob("*")):
        os.chown(path, 1000, 1000)
    return ml


def test_a_job_runs_with_all_rights_taken_away(cpu_image: str, open_ml: Ml) -> None:
    options = (*RESTRICTED, *open_ml.mount, "-e", "SAGEMAKER_PROGRAM=train.py")
    with Container(cpu_image, options=options) as container:
        assert container.wait() == 0, container.log()
        assert container.changes() == []
    assert owners(open_ml.root) == {(1000, 1000)}
    assert open_ml.exists("model/1/saved_model.pb")


def test_nothing_is_written_outside_the_jobs_folders(cpu_image: str, open_ml: Ml) -> None:
    options = (*open_ml.mount, "--tmpfs", "/tmp", "-e", "SAGEMAKER_PROGRAM=train.py")
    with Container(cpu_image, options=("--user", "1000:1000", *options)) as container:
        assert container.wait() == 0, container.log()
        assert container.changes() == []


def test_as_root_nothing_is_written_outside_the_jobs_folders_either(cpu_image: str, ml: Ml) -> None:
    ml.write("code/helper.py", "")
    ml.write("code/train.py", "import helper, json, tarfile\n")
    ml.write("code/requirements.txt", "numpy\n")
    options = (*ml.mount, "--tmpfs", "/tmp", "-e", "SAGEMAKER_PROGRAM=train.py")
    with Container(cpu_image, options=options) as container:
        assert container.wait() == 0, container.log()
        assert container.changes() == []
    assert sorted(os.listdir(ml.root / "code")) == ["helper.py", "requirements.txt", "train.py"]


def test_an_image_without_mounts_runs_as_anyone(cpu_image: str) -> None:
    options = ("--user", "4711", "-e", "SAGEMAKER_PROGRAM=json.tool", "-e", "HOME=/tmp")
    result = run(cpu_image, "sm-runtime", "check", options=options)
    assert "Permission" not in result.err
    result = run(
        cpu_image, "sh", "-c", "mkdir /opt/ml/model && ! touch /opt/ml/code/x", options=options
    )
    assert result.status == 0, result.err


@pytest.mark.parametrize(
    ("argument", "status"), [("", 0), ("fail", 3), ("wait", 0)], ids=["good", "failed", "stopped"]
)
def test_outputs_of_root_are_given_to_the_caller_however_the_job_ends(
    cpu_image: str, ml: Ml, argument: str, status: int
) -> None:
    ml.write("code/train.py", OWNED)
    ml.write("input/config/hyperparameters.json", {"sagemaker_program": "train.py"})
    variables = ("-e", "SM_RUNTIME_CHOWN=1000:1001", "-e", f'SM_RUNTIME_ARGS=["{argument}"]')
    options = (*ml.mount, *variables)
    with Container(cpu_image, options=options) as container:
        container.ready()
        ended = container.stop(30) if argument == "wait" else container.wait()
        assert ended == status, container.log()
    assert owners(ml.root / "model") == {(1000, 1001)}
    assert owners(ml.root / "output") == {(1000, 1001)}
    assert Path("/etc/passwd").stat().st_uid == 0

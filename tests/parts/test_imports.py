"""What is imported, and that importing does nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sm_runtime"
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if "tensorflow" not in path.parts]


def test_a_job_without_sources_imports_nothing_more() -> None:
    code = (
        "import sys; from sm_runtime import channels; from sm_runtime.job.model import *;"
        "from sm_runtime.job.model import Paths; c = Channel(name='a', path='/proc/self');"
        "here = Cluster(current_host='a', hosts=('a',));"
        "job = Job(paths=Paths('/x'), cluster=here, channels=(c,)); before = set(sys.modules);"
        "channels.prepare(job, {});\nwith channels.mounted(job, {}):"
        " print(set(sys.modules) - before)\n"
        "print([n for n in sys.modules if n.startswith(('sm_runtime.channels.', 'sm_runtime.st'))])"
    )
    done = subprocess.run((sys.executable, "-c", code), check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n[]\n"


IMPORT_ALL = """
import json, logging, os, signal, sys, threading
def state():
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    return [dict(os.environ), os.getcwd(), sys.path[:], threading.active_count(), os.umask(0o22),
            list(map(str, handlers)), list(map(str, logging.root.handlers)), logging.root.level,
            sorted(os.listdir("/proc/self/fd"))]
before = state()
for name in sys.argv[1:]:
    __import__(name)
print(json.dumps([state() == before, sorted({name.split(".")[0] for name in sys.modules})]))
"""


@pytest.mark.parametrize("serving", [False, True], ids=["training", "serving"])
def test_importing_does_nothing(tmp_path: Path, serving: bool) -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        # The hook for Python children is a sitecustomize: to act on import is what it is for.
        if "inject" not in path.parts and ("serving" in path.parts) == serving
    ]
    done = subprocess.run(
        (sys.executable, "-B", "-X", "utf8", "-c", IMPORT_ALL, *modules),
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "SAGEMAKER_BASE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    unchanged, loaded = json.loads(done.stdout)
    assert unchanged
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
    heavy = {"boto3", "botocore", "tensorflow", *(() if serving else ("numpy", "uvicorn"))}
    assert heavy.isdisjoint(loaded)


def test_what_listens_for_requests_has_no_numpy() -> None:
    code = (
        "import sys; from sm_runtime.serving import backend, front, serve;"
        "print({'numpy', 'tensorflow', 'sm_runtime.serving.worker'} & set(sys.modules))"
    )
    done = subprocess.run((sys.executable, "-c", code), check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"

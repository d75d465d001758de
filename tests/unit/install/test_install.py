"""Requirements that lie in a channel wait for it, others do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from sm_runtime.code.fetch import Code
from sm_runtime.install import needs_channels
from sm_runtime.job.model import Channel, Cluster, Job, Options, Paths, Source

DATA = "/opt/ml/input/data"
FOUND: dict[str, tuple[str, dict[str, str], str, bool]] = {
    "a name": ("numpy", {}, "requirements.txt", False),
    "nothing": ("", {}, "requirements.txt", False),
    "links": (f"-f {DATA}/wheels\nnumpy", {}, "requirements.txt", True),
    "links with =": (f"--find-links={DATA}/wheels", {}, "requirements.txt", True),
    "links, relative": ("-f ../input/data/wheels/a", {}, "requirements.txt", True),
    "links to another channel": (f"-f {DATA}/wheels2", {}, "requirements.txt", False),
    "links to a channel of the platform": (f"-f {DATA}/placed", {}, "requirements.txt", False),
    "links of the code": ("-f wheels\nnumpy", {}, "requirements.txt", False),
    "a URI": (f"x @ file://{DATA}/wheels/x.whl", {}, "requirements.txt", True),
    "a URI elsewhere": ("x @ file://host/x.whl", {}, "requirements.txt", False),
    "a NUL": ("-f /a\0b", {}, "requirements.txt", False),
    "an index": ("-i https://me:pass@host/simple/", {}, "requirements.txt", False),
    "a file": (f"{DATA}/wheels/x.whl", {}, "requirements.txt", True),
    "another file": (f"-r {DATA}/wheels/more.txt", {}, "requirements.txt", True),
    "a variable": ("x", {"PIP_FIND_LINKS": f"/a {DATA}/wheels"}, "requirements.txt", True),
    "another variable": ("x", {"OTHER": f"{DATA}/wheels"}, "requirements.txt", False),
    "the file itself": ("", {}, f"{DATA}/wheels/more.txt", True),
    "a file of the code": ("", {}, "wheels/more.txt", False),
}


@pytest.mark.parametrize(("text", "environ", "name", "waits"), FOUND.values(), ids=FOUND.keys())
def test_what_of_the_requirements_lies_in_a_channel(
    tmp_path: Path, text: str, environ: dict[str, str], name: str, waits: bool
) -> None:
    base = tmp_path / "ml"
    (base / "code").mkdir(parents=True)
    (base / "code/requirements.txt").write_text(text.replace("/opt/ml", str(base)))
    job = Job(
        paths=Paths(str(base)),
        cluster=Cluster(current_host="algo-1", hosts=("algo-1",)),
        channels=(
            Channel(name="wheels", path=f"{base}/input/data/wheels", source=Source(uri="s3://b/")),
            Channel(name="placed", path=f"{base}/input/data/placed"),
        ),
        options=Options(requirements=name.replace("/opt/ml", str(base))),
    )
    code = Code(directory=f"{base}/code", search_path=(f"{base}/code",))
    settings = {key: value.replace("/opt/ml", str(base)) for key, value in environ.items()}
    settings["PIP_CONFIG_FILE"] = "/dev/null"
    assert needs_channels(job, code, settings) == waits

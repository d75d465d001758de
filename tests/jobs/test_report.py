"""One HTML file about a job that has ended: ``sm-runtime report``, and beside the model."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Base
from tests.jobs.test_metrics import LOSS, job

SCRIPT = """
import sys
for epoch in range(3):
    print(f"epoch {epoch} - loss: {1 / (epoch + 1):.2f}", flush=True)
if "--fail" in sys.argv:
    raise KeyError("a <b>bad</b> key, hf_abcdefghijklmnopqrstuvwxyzabcdefgh")
"""
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Document(HTMLParser):
    """The texts and elements of a document whose elements are closed as they were opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report(base: Base, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(Path(sys.executable).with_name("sm-runtime")),
        "report",
        str(base.root),
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def stored(base: Base, name: str) -> Path:
    return base.root / "store" / "job-1" / "output" / name


@pytest.mark.parametrize("fails", [False, True])
def test_the_report_is_saved_beside_the_model(base: Base, fails: bool) -> None:
    options = {"fail": ""} if fails else {"learning-rate": "0.1", "api_token": "s3cr3t-t0ken-value"}
    result = job(base, LOSS, HyperParameters=options).script(SCRIPT).run()
    assert result.status == int(fails), result.log
    text = stored(base, "report.html").read_text()
    document = Document(text)
    assert "job-1" in document.text
    assert ("failure" if fails else "success") in document.text
    assert {"svg", "table"} <= set(document.tags)
    assert "script" not in document.tags
    assert [r for r in document.references if not r.startswith(("data:", "#"))] == []
    assert "hf_abcdefghij" not in text and "s3cr3t" not in text
    if fails:
        assert "KeyError: 'a <b>bad</b> key" in document.text
    else:
        assert "learning-rate" in document.text and "config" in document.text


def test_the_command_writes_it_anywhere_for_any_job(base: Base, tmp_path: Path) -> None:
    assert base.script("print('hello')").run().status == 0
    assert not base.path("output/metrics/report.html").exists()
    found = report(base)
    assert (found.returncode, found.stdout) == (0, f"{base.root}/output/metrics/report.html\n")
    target = tmp_path / "elsewhere.html"
    assert report(base, "-o", str(target)).returncode == 0
    assert Document(target.read_text()).tags.count("h2") >= 2


def test_without_a_job_the_command_says_so(base: Base) -> None:
    found = report(base)
    assert found.returncode == 1
    text = f"{base.root}/output/metrics/job.json: does not exist: no job has ended here\n"
    assert found.stdout == text


def test_what_is_known_of_the_job_is_a_file(base: Base) -> None:
    assert job(base).script("pass").run().status == 0
    document: dict[str, Any] = json.loads(base.path("output/metrics/job.json").read_text())
    assert document["status"] == "success"
    assert (document["exit"], document["kind"], document["name"]) == (0, "plain", "job-1")
    assert {"config", "train", "upload"} <= {phase["name"] for phase in document["phases"]}
    assert all(0 <= p["begin"] <= p["end"] <= document["seconds"] for p in document["phases"])


def test_a_report_that_cannot_be_saved_costs_the_job_nothing(base: Base) -> None:
    base.path("output").mkdir(exist_ok=True)
    base.path("output/metrics").write_text("a file in its place")
    result = job(base).script("pass").run()
    assert result.status == 0, result.log
    assert "the job's report is not saved" in result.log


def test_what_an_earlier_job_measured_is_not_of_this_one(base: Base) -> None:
    first = job(base, LOSS).script("print(' loss: 1')\nprint(' loss: 2')")
    assert first.run().status == 0
    assert first.script("print(' loss: 3')").run().status == 0
    values = base.path("output/metrics/script.jsonl").read_text().splitlines()
    assert [json.loads(line)["value"] for line in values] == [3.0]
    base.path("input/config/job.json").unlink()
    assert base.script("import sys; sys.exit(1)").run().status == 1
    assert not base.path("output/metrics/script.jsonl").exists()
    assert not base.path("output/metrics/report.html").exists()

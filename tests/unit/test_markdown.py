"""Which commands of the documents are run by tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.markdown import DOCUMENTS, ROOT, Fence, fences

ALL = [fence for document in DOCUMENTS for fence in fences(document)]


def fence(marker: str, text: str = "one\ntwo", language: str = "sh") -> Fence:
    return Fence(ROOT / "README.md", 1, language, text, marker)


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.name)
def test_each_command_of_the_documents_is_run_or_says_why_not(each: Fence) -> None:
    assert each.problem is None


def test_some_are_run_in_each_place() -> None:
    assert {each.place for each in ALL} >= {"checkout", "image"}


@pytest.mark.parametrize(
    ("marker", "problem"),
    [
        ("", "no marker"),
        ("text", "no marker"),
        ("<!-- run: -->", "no marker"),
        ("<!-- not run: -->", "no marker"),
        ("<!-- run: moon -->", "'moon' is not one of"),
        ("<!-- run: image; skip one -->", "cannot be read"),
        ("<!-- run: image; skip three: it is not there -->", "no line begins with 'three'"),
    ],
)
def test_a_wrong_marker_is_an_error(marker: str, problem: str) -> None:
    assert problem in (fence(marker).problem or "")


def test_lines_can_be_left_out_for_a_reason() -> None:
    found = fence("<!-- run: image; skip two: it takes an hour -->", "one\ntwo 2\nthree")
    assert (found.problem, found.place, found.commands) == (None, "image", "one\nthree")
    assert found.skipped == {"two": "it takes an hour"}


def test_fences_are_found_with_the_line_before_them(tmp_path: Path) -> None:
    document = tmp_path / "x.md"
    document.write_text(
        "```sh\na\n```\n<!-- run: image -->\n```sh\nb\n\nc\n```\n```python\nd\n```\n"
        "<!-- not run: no -->\n```dockerfile\nFROM x\n```\n"
    )
    found = [(each.line, each.marker, each.text) for each in fences(document)]
    assert found == [
        (1, "", "a"),
        (5, "<!-- run: image -->", "b\n\nc"),
        (14, "<!-- not run: no -->", "FROM x"),
    ]

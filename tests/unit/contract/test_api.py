"""Every member of the API's CreateTrainingJob shape was decided on, and the page says what it does.

The shape is that of the botocore that is installed, the newest where tests run: a member that AWS
adds fails here until somebody decides on it. Until then jobs refuse it by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sm_runtime.contract import load
from sm_runtime.contract.load import Parsed
from sm_runtime.contract.reader import Document
from sm_runtime.contract.request import REQUEST, Refused, Unused, Used, members
from sm_runtime.job.model import Paths

KNOWN_OF = (1, 44, 8)
"""The botocore that the table was made from: an older one may lack what it has."""
DECIDED = dict(members(REQUEST))
PAGE = (Path(__file__).parents[3] / "docs/request.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"(?m)^\| `([A-Za-z0-9.]+)` \| (.+) \|$", PAGE))


@cache
def api() -> Any:
    """Return the shape: botocore is read by the worker that needs it, and not by each."""
    import botocore.session

    service = botocore.session.get_session().get_service_model("sagemaker")
    return service.operation_model("CreateTrainingJob").input_shape


def leaves(shape: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each member that is no structure; a structure that was decided on as a whole is one."""
    inner = shape.member if shape.type_name == "list" else shape
    if inner.type_name != "structure" or path in DECIDED:
        yield path, shape
        return
    for name, member in inner.members.items():
        yield from leaves(member, f"{path}.{name}" if path else name)


@cache
def api_leaves() -> dict[str, Any]:
    return dict(leaves(api()))


def parse(request: Any) -> Parsed:
    document = Document("job.json", json.dumps(request).encode())
    return load.parse({"job": document}, {}, Paths(), "box")


def values_of(path: str) -> tuple[Any, Any]:
    """Return two values that a member may have."""
    shape, name = api_leaves()[path], path.rpartition(".")[2]
    if name == "MetricDefinitions":
        return [{"Name": "m", "Regex": "(x)"}], []
    if "Path" in name and "S3" not in name:
        return "/a", "/b"
    if "Uri" in name or name == "S3OutputPath":
        return "s3://b/p", "s3://b/q"
    if getattr(shape, "enum", ()):
        return shape.enum[0], shape.enum[1]
    return {
        "string": ("a", "b"),
        "integer": (1, 2),
        "long": (1, 2),
        "boolean": (True, False),
        "map": ({"a": "1"}, {"a": "2"}),
        "list": (["a"], ["b"]),
        "structure": ({"X": 1}, {}),
    }[shape.type_name]


def request_with(path: str, value: Any) -> Any:
    """Return a request that has ``value`` at ``path`` and no more than that needs."""
    return _with(path, value, api())


def _with(path: str, value: Any, shape: Any) -> Any:
    if not path:
        return value
    if shape.type_name == "list":
        return [_with(path, value, shape.member)]
    name, _, rest = path.partition(".")
    found = {name: _with(rest, value, shape.members[name])}
    needed = {
        "Channel": {"ChannelName": "c", "DataSource": {"S3DataSource": {"S3Uri": "s3://b/p"}}},
        "CheckpointConfig": {"S3Uri": "s3://b/c"},
        "TensorBoardOutputConfig": {"S3OutputPath": "s3://b/t"},
        "S3DataSource": {"S3Uri": "s3://b/p", "AttributeNames": ["a"]},
        "FileSystemDataSource": {"DirectoryPath": "/d"},
        "OutputDataConfig": {"S3OutputPath": "s3://b/o"},
        "InstanceGroup": {"InstanceGroupName": "g", "InstanceCount": 1},
        "InstancePreference": {"InstanceCount": 1},
        "ResourceConfig": {"SelectedInstanceCount": 1} if name == "SelectedInstanceType" else {},
        "CreateTrainingJobRequest": {
            "TrainingJobName": "j",
            "InputDataConfig": [{"ChannelName": "c"}],
        },
    }
    return {**needed.get(shape.name, {}), **found}


def test_each_member_of_the_api_was_decided_on() -> None:
    import botocore

    undecided = sorted(set(api_leaves()) - set(DECIDED))
    assert not undecided, (
        f"botocore {botocore.__version__}: decide on these in sm_runtime/contract/request.py"
    )


def test_each_decision_is_on_a_member_that_the_api_has() -> None:
    import botocore

    if tuple(map(int, re.findall(r"\d+", botocore.__version__)[:3])) < KNOWN_OF:
        pytest.skip("this botocore is older than the table")
    assert not sorted(set(DECIDED) - set(api_leaves()))


def test_the_page_has_a_row_for_each_member_and_says_the_same() -> None:
    assert sorted(ROWS) == sorted(DECIDED)
    for path, fate in DECIDED.items():
        if isinstance(fate, Unused):
            assert ROWS[path] == f"no effect: {fate.why}"
        else:
            assert ROWS[path].startswith("refused: ") == isinstance(fate, Refused), path
            assert not ROWS[path].startswith("no effect"), path


@pytest.mark.parametrize("path", [p for p, fate in DECIDED.items() if isinstance(fate, Used)])
def test_what_has_an_effect_changes_the_job(path: str) -> None:
    first, second = (parse(request_with(path, value)) for value in values_of(path))
    assert first.problems == ()
    assert (first.job, first.problems) != (second.job, second.problems)


@pytest.mark.parametrize("path", [p for p, fate in DECIDED.items() if isinstance(fate, Unused)])
def test_what_has_no_effect_is_said_once(path: str) -> None:
    parsed = parse(request_with(path, values_of(path)[0]))
    assert parsed.problems == ()
    (line,) = [note for note in parsed.notes if "no effect here" in note]
    assert line == f"job.json: no effect here: {path}"


@pytest.mark.parametrize("path", [p for p, fate in DECIDED.items() if isinstance(fate, Refused)])
def test_what_cannot_be_had_is_refused_by_name(path: str) -> None:
    (problem,) = parse(request_with(path, {"X": 1})).problems
    assert path.rpartition(".")[2] in problem


def test_each_choice_of_the_api_is_known() -> None:
    choices = [
        (path, value)
        for path, shape in api_leaves().items()
        if not isinstance(DECIDED.get(path), Unused) and not path.endswith("InstanceType")
        for value in getattr(shape, "enum", ())
    ]
    assert choices
    for path, value in choices:
        problems = parse(request_with(path, value)).problems
        refused = [f"{value!r} is available on SageMaker only" in text for text in problems]
        assert all(refused), (path, problems)
        assert not refused or value == "Converse", path


def test_all_members_without_effect_stand_in_one_line() -> None:
    parsed = parse({"RoleArn": "r", "Tags": [{}], "ResourceConfig": {"VolumeSizeInGB": 1}})
    line = "job.json: no effect here: RoleArn, Tags, ResourceConfig.VolumeSizeInGB"
    assert parsed.notes == (line,)
    assert parsed.warnings == ()


@pytest.mark.parametrize("nothing", [None, False, "", [], {}, 0])
def test_what_says_nothing_is_not_mentioned(nothing: Any) -> None:
    parsed = parse({"EnableNetworkIsolation": nothing, "VpcConfig": nothing})
    assert (parsed.notes, parsed.warnings, parsed.problems) == ((), (), ())


@pytest.mark.parametrize(
    "name", ["EnableNetworkIsolation", "EnableInterContainerTrafficEncryption"]
)
def test_what_a_user_may_rely_on_is_a_warning(name: str) -> None:
    (warning,) = parse({name: True}).warnings
    assert warning.startswith(f"job.json: {name}: no effect here: ")

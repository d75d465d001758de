"""Files and variables become a job, or every problem they have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sm_runtime.contract import environment as environ
from sm_runtime.contract import load
from sm_runtime.contract.hyperparameters import OPTIONS
from sm_runtime.contract.load import Parsed
from sm_runtime.contract.reader import Document
from sm_runtime.job.model import Hardware, Job, Options, Paths

CONFIG = "/opt/ml/input/config"
RESOURCES = {"current_host": "algo-1", "hosts": ["algo-1", "algo-2"]}


def parse(environ: dict[str, str] | None = None, hostname: str = "box", **documents: Any) -> Parsed:
    """Parse documents that are given as bytes or as JSON values."""
    found = {
        name: Document(
            f"{CONFIG}/{name}.json",
            value if isinstance(value, bytes) else json.dumps(value).encode(),
        )
        for name, value in documents.items()
    }
    return load.parse(found, environ or {}, Paths(), hostname)


def job(environ: dict[str, str] | None = None, **documents: Any) -> Job:
    parsed = parse(environ, **documents)
    assert parsed.problems == ()
    assert parsed.job is not None
    return parsed.job


def problem(environ: dict[str, str] | None = None, **documents: Any) -> str:
    parsed = parse(environ, **documents)
    assert parsed.job is None
    assert len(parsed.problems) == 1, parsed.problems
    return parsed.problems[0]


MALFORMED = [
    (b"", "is empty, at line 1 column 1"),
    (b" \n", "is empty, at line 1 column 1"),
    (b'{"a": 1,\n "b" 2}', "invalid JSON at line 2 column 6: Expecting ':' delimiter"),
    (b'{"a": 1}}', "invalid JSON at line 1 column 9: Extra data"),
    (
        b"\xef\xbb\xbf{}",
        "invalid JSON at line 1 column 1: begins with the byte order mark of UTF-8",
    ),
    ("{}".encode("utf-16"), "line 1 column 1: begins with the byte order mark of UTF-16"),
    ("{}".encode("utf-32"), "line 1 column 1: begins with the byte order mark of UTF-32"),
    (b'{"a":\n "\xff"}', "invalid JSON at line 2 column 3: byte 0xff is not UTF-8"),
    (b"[1]", "must be a JSON object, not a list"),
    (b'"text"', "must be a JSON object, not a string"),
    (b"null", "must be a JSON object, not null"),
    (b"3", "must be a JSON object, not a number"),
    (b'{"a":' * 300 + b"1" + b"}" * 300, "is nested more than 200 levels deep"),
    (b'{"a":' * 100_000, "is nested more than 200 levels deep"),
]


@pytest.mark.parametrize("name", ["hyperparameters", "inputdataconfig", "resourceconfig", "job"])
@pytest.mark.parametrize(("data", "reason"), MALFORMED, ids=[reason for _, reason in MALFORMED])
def test_a_malformed_file_is_one_sentence_with_its_name(
    name: str, data: bytes, reason: str
) -> None:
    documents: dict[str, Any] = {"resourceconfig": RESOURCES, name: data}
    found = problem(**documents)
    assert found.startswith(f"{CONFIG}/{name}.json: ")
    assert reason in found


def test_absent_files_make_a_job_of_one_host() -> None:
    found = job()
    assert found.cluster.hosts == ("box",)
    assert found.cluster.is_leader
    assert found.managed
    assert (found.hyperparameters, found.channels, found.program) == ({}, (), None)
    assert (found.log_level, found.region, found.submit_directory) == (20, "", None)


def test_every_problem_is_found_at_once() -> None:
    parsed = parse(
        {"SM_RUNTIME_INSTALL": "perhaps"},
        hyperparameters={"a=b": "1", "sagemaker_mpi_enabled": "maybe"},
        inputdataconfig={"train": {"TrainingInputMode": "Foo"}},
        resourceconfig={"current_host": "algo-3", "hosts": ["algo-1", "algo-1"]},
    )
    assert parsed.job is None
    assert parsed.problems == (
        f"{CONFIG}/hyperparameters.json: a=b: holds '=' in its key, which the name of a variable"
        " (SM_HP_...) cannot",
        f"{CONFIG}/hyperparameters.json: sagemaker_mpi_enabled: must be true or false, not 'maybe'",
        f"{CONFIG}/resourceconfig.json: hosts: names the host 'algo-1' more than once",
        f"{CONFIG}/resourceconfig.json: current_host: 'algo-3' is not one of the hosts 'algo-1',"
        " 'algo-1'",
        f"{CONFIG}/inputdataconfig.json: train.TrainingInputMode: must be 'File', 'Pipe' or"
        " 'FastFile', not 'Foo'",
        "environment: SM_RUNTIME_INSTALL: must be true or false, not 'perhaps'",
    )


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("sagemaker_mpi_enabled", "maybe", "must be true or false, not 'maybe'"),
        ("sagemaker_parameter_server_enabled", "1", "must be true or false, not 1"),
        ("sagemaker_mpi_num_of_processes_per_host", "0", "whole number of at least 1, not 0"),
        ("sagemaker_mpi_num_processes", "two", "a whole number of at least 1, not 'two'"),
        ("sagemaker_container_log_level", "loud", "must be a log level"),
        ("sagemaker_container_log_level", "true", "must be a log level"),
        ("sagemaker_container_log_level", "-1", "must be a log level"),
        ("sagemaker_container_log_level", "20.5", "must be a log level"),
        ("sagemaker_program", '["a"]', "must be a string, not a list"),
        ("sagemaker_distribution_instance_groups", '"a"', "must be a list, not 'a'"),
        ("sagemaker_distribution_instance_groups", "[1]", "[0]: must be a string, not 1"),
        ("nul", "a\0b", "holds a NUL character"),
        ("nul", '{"a": "\\u0000"}', "holds a NUL character"),
        ("nul\0", "1", "the key holds a NUL character"),
        ("half", '"\\ud800"', "holds half of a surrogate pair"),
        ("half", "\ud800", "holds half of a surrogate pair"),
        ("a=b", "1", "holds '=' in its key"),
    ],
)
def test_a_wrong_hyperparameter_is_named(key: str, value: str, reason: str) -> None:
    found = problem(hyperparameters={key: value}, resourceconfig=RESOURCES)
    assert found.startswith(f"{CONFIG}/hyperparameters.json: {key}")
    assert reason in found


def test_a_secret_is_not_shown_in_a_problem() -> None:
    found = problem(
        hyperparameters={"db_password": "hunter2\0", "x": "1"}, resourceconfig=RESOURCES
    )
    assert "hunter2" not in found
    assert found.endswith("'***'")


def test_a_long_value_is_cut_in_a_problem() -> None:
    assert len(problem(hyperparameters={"sagemaker_mpi_enabled": "x" * 5000})) < 300


@pytest.mark.parametrize("value", ["true", "True", True, '"true"', '"True"'])
def test_a_reserved_boolean_is_read_as_any_sender_writes_it(value: Any) -> None:
    found = job(hyperparameters={"sagemaker_mpi_enabled": value}, resourceconfig=RESOURCES)
    assert found.framework_parameters == {"sagemaker_mpi_enabled": True}
    assert found.cluster.distribution_groups == ("homogeneousCluster",)


@pytest.mark.parametrize("value", ["false", "False", False, '"False"'])
def test_the_text_false_is_false(value: Any) -> None:
    found = job(hyperparameters={"sagemaker_mpi_enabled": value}, resourceconfig=RESOURCES)
    assert found.framework_parameters == {"sagemaker_mpi_enabled": False}
    assert found.cluster.distribution_groups == ()


@pytest.mark.parametrize(
    ("value", "level"),
    [("10", 10), (10, 10), ('"10"', 10), ("debug", 10), ('"WARNING"', 30), ("warn", 30), ("0", 0)],
)
def test_a_log_level_is_a_number_or_a_name(value: Any, level: int) -> None:
    key = "sagemaker_container_log_level"
    assert job(hyperparameters={key: value}, resourceconfig=RESOURCES).log_level == level


@pytest.mark.parametrize(
    ("value", "name"), [("123", "123"), ("1e3", "1e3"), (7, "7"), ('"j"', "j"), ("j", "j")]
)
def test_a_job_name_that_is_a_number_is_its_text(value: Any, name: str) -> None:
    found = job(hyperparameters={"sagemaker_job_name": value}, resourceconfig=RESOURCES)
    assert found.reserved == {"sagemaker_job_name": name}


@pytest.mark.parametrize(
    ("environ", "key", "value", "attribute", "expected"),
    [
        ({"SAGEMAKER_PROGRAM": "e.py"}, "sagemaker_program", "h.py", "program", "e.py"),
        ({"SAGEMAKER_PROGRAM": ""}, "sagemaker_program", "h.py", "program", "h.py"),
        (
            {"SAGEMAKER_SUBMIT_DIRECTORY": "/e"},
            "sagemaker_submit_directory",
            "/h",
            "submit_directory",
            "/h",
        ),
        ({"SAGEMAKER_SUBMIT_DIRECTORY": "/e"}, "x", "", "submit_directory", "/e"),
        (
            {"SAGEMAKER_CONTAINER_LOG_LEVEL": "40"},
            "sagemaker_container_log_level",
            "10",
            "log_level",
            10,
        ),
        ({"SAGEMAKER_CONTAINER_LOG_LEVEL": "ERROR"}, "x", "", "log_level", 40),
        ({"AWS_REGION": "e"}, "sagemaker_region", '"h"', "region", "h"),
        ({"AWS_REGION": "e", "AWS_DEFAULT_REGION": "d"}, "x", "", "region", "e"),
        ({"TRAINING_JOB_NAME": "j"}, "sagemaker_job_name", "h", "name", "j"),
        ({"SAGEMAKER_TRAINING_MODULE": "m:f"}, "x", "", "training_module", "m:f"),
    ],
)
def test_the_variable_or_the_hyperparameter_wins(
    environ: dict[str, str], key: str, value: str, attribute: str, expected: Any
) -> None:
    found = job(environ, hyperparameters={key: value}, resourceconfig=RESOURCES)
    assert getattr(found, attribute) == expected


def test_a_wrong_log_level_variable_is_named() -> None:
    found = problem({"SAGEMAKER_CONTAINER_LOG_LEVEL": "loud"})
    assert found.startswith("environment: SAGEMAKER_CONTAINER_LOG_LEVEL: must be a log level")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"hosts": "algo-1"}, "hosts: must be a list, not 'algo-1'"),
        ({"hosts": []}, "hosts: must name at least one host"),
        ({"hosts": [1], "current_host": "a"}, "hosts[0]: must be a string, not 1"),
        ({"current_host": "algo-1"}, "hosts: is missing"),
        ({}, "hosts: is missing"),
        ({"hosts": ["a", "b"]}, "current_host: is missing"),
        ({"hosts": ["a"], "current_host": 1}, "current_host: must be a string, not 1"),
        ({"hosts": ["a"], "current_host": "b"}, "current_host: 'b' is not one of the hosts 'a'"),
        ({"hosts": ["a b"], "current_host": "a b"}, "'a b' cannot be the name of a host"),
        ({**RESOURCES, "network_interface_name": 1}, "network_interface_name: must be a string"),
        ({**RESOURCES, "instance_groups": {}}, "instance_groups: must be a list, not an object"),
        ({**RESOURCES, "instance_groups": ["a"]}, "instance_groups[0]: must be an object"),
        ({**RESOURCES, "instance_groups": [{}]}, "[0].instance_group_name: is missing"),
        ({**RESOURCES, "topology": "x"}, "topology: must be a list, not 'x'"),
    ],
)
def test_a_wrong_resource_config_is_named(config: dict[str, Any], reason: str) -> None:
    found = parse(resourceconfig=config)
    assert found.job is None
    assert any(
        text.startswith(f"{CONFIG}/resourceconfig.json: ") and reason in text
        for text in found.problems
    ), found.problems


def test_a_group_that_does_not_exist_cannot_be_distributed_over() -> None:
    groups = [{"instance_group_name": "g", "instance_type": "t", "hosts": ["algo-1"]}]
    found = problem(
        hyperparameters={"sagemaker_distribution_instance_groups": '["h"]'},
        resourceconfig={**RESOURCES, "instance_groups": groups},
    )
    assert "'h' is not one of the instance groups 'g'" in found


@pytest.mark.parametrize(
    ("environ", "hostname", "hosts", "current"),
    [
        ({"SM_RUNTIME_HOSTS": "a, b", "SM_RUNTIME_CURRENT_HOST": "b"}, "x", ("a", "b"), "b"),
        ({"SM_RUNTIME_HOSTS": "a,b"}, "a", ("a", "b"), "a"),
        ({"SM_RUNTIME_HOSTS": "a"}, "x", ("a",), "a"),
        ({"SM_RUNTIME_CURRENT_HOST": "b"}, "x", ("b",), "b"),
    ],
)
def test_hosts_may_come_from_variables(
    environ: dict[str, str], hostname: str, hosts: tuple[str, ...], current: str
) -> None:
    parsed = parse(environ, hostname, hyperparameters={})
    assert parsed.job is not None
    cluster = parsed.job.cluster
    assert (cluster.hosts, cluster.current_host) == (hosts, current)
    assert cluster.current_group_hosts == hosts


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"SM_RUNTIME_HOSTS": "a,b"}, "current_host: is missing, and the container's name 'box'"),
        ({"SM_RUNTIME_HOSTS": "a,,b", "SM_RUNTIME_CURRENT_HOST": "a"}, "'' cannot be the name"),
        (
            {"SM_RUNTIME_HOSTS": "a,b", "SM_RUNTIME_CURRENT_HOST": "c"},
            "environment: SM_RUNTIME_CURRENT_HOST: 'c' is not one of the hosts 'a', 'b'",
        ),
    ],
)
def test_wrong_hosts_in_variables_are_named(environ: dict[str, str], reason: str) -> None:
    assert reason in problem(environ)


def test_the_file_of_hosts_wins_over_variables() -> None:
    found = job(
        {"SM_RUNTIME_HOSTS": "a,b", "SM_RUNTIME_CURRENT_HOST": "a"}, resourceconfig=RESOURCES
    )
    assert found.cluster.hosts == ("algo-1", "algo-2")


def test_a_missing_resource_config_is_noted_if_other_files_exist() -> None:
    parsed = parse(hyperparameters={})
    assert parsed.job is not None
    assert parsed.notes == (
        f"{CONFIG}/resourceconfig.json: does not exist though other files do: 'box' is taken for"
        " the only host",
    )
    assert parse().notes == ()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"t": {"TrainingInputMode": "Foo"}}, "t.TrainingInputMode: must be 'File', 'Pipe' or"),
        ({"t": {"S3DistributionType": "x"}}, "t.S3DistributionType: must be 'FullyReplicated' or"),
        ({"t": {"RecordWrapperType": "x"}}, "t.RecordWrapperType: must be 'None' or 'RecordIO'"),
        ({"t": {"ContentType": 1}}, "t.ContentType: must be a string, not 1"),
        ({"t": "File"}, "t: must be an object, not 'File'"),
        ({"t": None}, "t: must be an object, not null"),
        ({"../up": {}}, "'../up' cannot be the name of a channel"),
        ({"..": {}}, "'..' cannot be the name of a channel"),
        ({"": {}}, "'' cannot be the name of a channel"),
        ({"a=b": {}}, "'a=b' cannot be the name of a channel"),
        ({"a\0": {}}, "holds a NUL character"),
    ],
)
def test_a_wrong_channel_is_named(config: dict[str, Any], reason: str) -> None:
    found = problem(inputdataconfig=config, resourceconfig=RESOURCES)
    assert found.startswith(f"{CONFIG}/inputdataconfig.json: ")
    assert reason in found


def test_every_key_of_a_channel_is_optional_and_unknown_ones_are_kept() -> None:
    found = job(inputdataconfig={"t": {"New": 1}}, resourceconfig=RESOURCES)
    (channel,) = found.channels
    assert (channel.path, channel.mode) == ("/opt/ml/input/data/t", "File")
    assert found.input_data_config == {"t": {"New": 1}}


def test_a_key_that_stands_twice_is_warned_of() -> None:
    parsed = parse(hyperparameters=b'{"a": "1", "a": "2"}', resourceconfig=RESOURCES)
    assert parsed.warnings == (
        f"{CONFIG}/hyperparameters.json: the key 'a' stands there more than once: the last one"
        " counts",
    )


def test_a_number_too_long_for_python_is_its_text() -> None:
    digits = "1" * 5000
    found = job(hyperparameters={"n": digits}, resourceconfig=RESOURCES)
    assert str(found.hyperparameters["n"]) == digits


def test_a_text_nested_beyond_reason_is_a_text() -> None:
    text = "[" * 100_000
    found = job(hyperparameters={"deep": text}, resourceconfig=RESOURCES)
    assert found.hyperparameters["deep"] == text


@pytest.mark.parametrize(
    ("model_dir", "expected"),
    [
        ("s3://b/p", "s3://b/p/j/model"),
        ("/mnt/model", "/mnt/model/j/model"),
        ("/opt/ml/model", "/opt/ml/model"),
        (None, None),
    ],
)
def test_a_tuning_job_has_a_model_dir_of_its_own(
    model_dir: str | None, expected: str | None
) -> None:
    given = {"_tuning_objective_metric": "val_loss"}
    if model_dir is not None:
        given["model_dir"] = json.dumps(model_dir)
    parsed = parse({"TRAINING_JOB_NAME": "j"}, hyperparameters=given, resourceconfig=RESOURCES)
    assert parsed.job is not None
    assert parsed.job.hyperparameters.get("model_dir") == expected
    changed = expected != model_dir
    assert parsed.notes == (
        (f"Appending the training job name to model_dir: {expected}",) if changed else ()
    )


def test_a_tuning_job_without_a_name_keeps_its_model_dir_and_warns() -> None:
    given = {"_tuning_objective_metric": "val_loss", "model_dir": "s3://b/p"}
    parsed = parse(hyperparameters=given, resourceconfig=RESOURCES)
    assert parsed.job is not None
    assert parsed.job.hyperparameters == {"model_dir": "s3://b/p"}
    assert "TRAINING_JOB_NAME" in parsed.warnings[0]


def test_every_option_can_be_set() -> None:
    assert list(OPTIONS) == list(Options.__annotations__)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("argument_style", "flags, json", frozenset({"flags", "json"})),
        ("argument_style", "sagemaker", frozenset()),
        ("args", '["--x", ""]', ("--x", "")),
        ("launcher", '["nice", "{command}"]', ("nice", "{command}")),
        ("parameter_server_layout", "chief", "chief"),
        ("parameter_server_evaluator", "1", True),
        ("code_preference", "image", "image"),
        ("code_max_bytes", "1000", 1000),
        ("install", "false", False),
        ("install", "0", False),
        ("requirements", "r.txt", "r.txt"),
        ("require_model", "True", True),
        ("stop_grace_seconds", "2.5", 2.5),
        ("stop_signal", "SIGUSR1", "USR1"),
        ("stop_signal", "int", "INT"),
        ("silence_seconds", "60", 60.0),
        ("unbuffered", "no", False),
    ],
)
def test_an_option_is_a_variable_or_a_hyperparameter(name: str, value: str, expected: Any) -> None:
    variable, key = f"SM_RUNTIME_{name.upper()}", f"sagemaker_runtime_{name}"
    for found in (
        job({variable: value}),
        job(hyperparameters={key: value}, resourceconfig=RESOURCES),
        job(hyperparameters={key: json.dumps(value)}, resourceconfig=RESOURCES),
        job({variable: value}, hyperparameters={key: "wrong"}, resourceconfig=RESOURCES),
    ):
        assert getattr(found.options, name) == expected
    assert job({variable: ""}).options == Options()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ARGUMENT_STYLE", "flag"),
        ("ARGS", "--x"),
        ("ARGS", '{"a": 1}'),
        ("ARGS", "[1]"),
        ("CODE_PREFERENCE", "both"),
        ("CODE_MAX_BYTES", "10GB"),
        ("INSTALL", "perhaps"),
        ("STOP_GRACE_SECONDS", "-1"),
        ("STOP_GRACE_SECONDS", "nan"),
        ("STOP_GRACE_SECONDS", "inf"),
        ("STOP_SIGNAL", "KILL"),
    ],
)
def test_a_wrong_option_is_named(name: str, value: str) -> None:
    assert problem({f"SM_RUNTIME_{name}": value}).startswith(f"environment: SM_RUNTIME_{name}")


def test_a_setting_that_does_not_exist_is_warned_of_with_the_closest() -> None:
    parsed = parse(
        {"SM_RUNTIME_REQUIREMENT": "x", "SM_RUNTIME_HOSTS": "box", "SM_RUNTIME_CHOWN": "1"},
        hyperparameters={"sagemaker_runtime_instal": "false"},
        resourceconfig={"hosts": ["box"], "current_host": "box"},
    )
    assert parsed.warnings == (
        "environment: SM_RUNTIME_REQUIREMENT: no such setting; did you mean"
        " 'SM_RUNTIME_REQUIREMENTS'?",
        f"{CONFIG}/hyperparameters.json: sagemaker_runtime_instal: no such setting; did you mean"
        " 'sagemaker_runtime_install'?",
    )


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
KEYS = """
    current_host hosts instance_groups topology current_group_name InputDataConfig ChannelName
    HyperParameters AlgorithmSpecification OutputDataConfig S3OutputPath DataSource S3DataSource
    S3Uri Environment ResourceConfig InstanceCount MetricDefinitions Regex StoppingCondition
    MaxRuntimeInSeconds CheckpointConfig ShuffleConfig Seed TrainingInputMode sagemaker_program
    sagemaker_mpi_enabled sagemaker_container_log_level sagemaker_runtime_args
    sagemaker_distribution_instance_groups _tuning_objective_metric model_dir
"""
KNOWN = st.sampled_from(KEYS.split())
CONFIGS = st.recursive(
    ANYTHING,
    lambda inner: st.dictionaries(KNOWN, inner, max_size=3) | st.lists(inner, max_size=2),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["hyperparameters", "inputdataconfig", "resourceconfig", "job"]),
        st.binary(max_size=20) | st.dictionaries(KNOWN | st.text(max_size=3), CONFIGS, max_size=4),
    )
)
def test_any_files_give_a_job_or_problems(documents: dict[str, Any]) -> None:
    parsed = parse(**documents)
    assert (parsed.job is None) is bool(parsed.problems)
    if parsed.job is not None:
        environ.process_environment(parsed.job, Hardware(cpus=1), {}, ())
        environ.secrets(parsed.job, {})
        environ.arguments(parsed.job)

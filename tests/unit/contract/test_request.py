"""A CreateTrainingJob request makes a self-managed job."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sm_runtime.contract import environment, load
from sm_runtime.contract.load import Parsed
from sm_runtime.contract.reader import Document
from sm_runtime.job.model import Hardware, Job, Metric, Output, Paths, Source, Sync
from sm_runtime.launch import distribution

S3 = {"S3DataType": "S3Prefix", "S3Uri": "s3://b/p"}


def parse(request: Any, variables: dict[str, str] | None = None, **documents: Any) -> Parsed:
    found = {
        name: Document(f"{name}.json", json.dumps(value).encode())
        for name, value in {"job": request, **documents}.items()
    }
    return load.parse(found, variables or {}, Paths(), "box")


def job(request: Any, variables: dict[str, str] | None = None, **documents: Any) -> Job:
    parsed = parse(request, variables, **documents)
    assert parsed.problems == ()
    assert parsed.job is not None
    return parsed.job


def problem(request: Any, variables: dict[str, str] | None = None, **documents: Any) -> str:
    parsed = parse(request, variables, **documents)
    assert parsed.job is None
    assert len(parsed.problems) == 1, parsed.problems
    return parsed.problems[0]


def channel(**fields: Any) -> dict[str, Any]:
    return {"InputDataConfig": [{"ChannelName": "t", "DataSource": {"S3DataSource": S3}, **fields}]}


def test_an_empty_request_is_a_self_managed_job_without_anything_else() -> None:
    found = job({})
    assert not found.managed
    assert (found.channels, found.output, found.name) == ((), None, None)
    assert found.stop_grace_seconds == 90


def test_everything_that_a_container_needs_is_read() -> None:
    found = job(
        {
            "TrainingJobName": "j",
            "AlgorithmSpecification": {
                "TrainingInputMode": "Pipe",
                "MetricDefinitions": [{"Name": "loss", "Regex": " loss: ([0-9\\.]+)"}],
                "ContainerArguments": ["--verbatim", ""],
            },
            "InputDataConfig": [
                {
                    "ChannelName": "t",
                    "DataSource": {
                        "S3DataSource": {
                            "S3DataType": "AugmentedManifestFile",
                            "S3Uri": "file:///data/m.json",
                            "S3DataDistributionType": "ShardedByS3Key",
                            "AttributeNames": ["image-ref", "label"],
                            "InstanceGroupNames": ["g"],
                        }
                    },
                    "ContentType": "c",
                    "CompressionType": "Gzip",
                    "RecordWrapperType": "RecordIO",
                    "ShuffleConfig": {"Seed": 7},
                },
                {
                    "ChannelName": "e",
                    "DataSource": {"FileSystemDataSource": {"DirectoryPath": "/mnt/e"}},
                    "InputMode": "File",
                },
                {"ChannelName": "there"},
            ],
            "OutputDataConfig": {
                "S3OutputPath": "s3://b/out",
                "KmsKeyId": "k",
                "CompressionType": "NONE",
            },
            "CheckpointConfig": {"S3Uri": "file:///c"},
            "TensorBoardOutputConfig": {"S3OutputPath": "s3://b/tb", "LocalPath": "/tb"},
            "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 90},
            "Environment": {"A": "1", "SAGEMAKER_PROGRAM": "e.py"},
            "RetryStrategy": {"MaximumRetryAttempts": 3},
        },
        {"A": "image", "SAGEMAKER_PROGRAM": "image.py", "TRAINING_JOB_NAME": "other"},
    )
    train, shared, there = found.channels
    assert (train.mode, train.distribution, train.record_wrapper, train.content_type) == (
        "Pipe",
        "ShardedByS3Key",
        "RecordIO",
        "c",
    )
    assert train.source == Source(
        uri="file:///data/m.json",
        data_type="AugmentedManifestFile",
        attribute_names=("image-ref", "label"),
        instance_groups=("g",),
        compression="Gzip",
        shuffle_seed=7,
    )
    assert (shared.mode, shared.source) == (
        "File",
        Source(uri="/mnt/e", data_type="FileSystem", read_only=True),
    )
    assert there.source is None
    assert found.output == Output(uri="s3://b/out", kms_key="k", compression="NONE")
    assert found.checkpoints == Sync(local_path="/opt/ml/checkpoints", uri="file:///c")
    assert found.tensorboard == Sync(local_path="/tb", uri="s3://b/tb")
    assert found.metrics == (Metric(name="loss", regex=" loss: ([0-9\\.]+)"),)
    assert found.options.args == ("--verbatim", "")
    assert found.max_runtime_seconds == 60
    assert found.environment == {"A": "1", "SAGEMAKER_PROGRAM": "e.py"}
    assert (found.name, found.program) == ("j", "e.py")


def test_the_rest_of_the_api_is_accepted() -> None:
    found = job(
        {
            "TrainingJobName": "j",
            "RoleArn": "arn",
            "Tags": [{"Key": "a", "Value": "b"}],
            "VpcConfig": {},
            "EnableManagedSpotTraining": True,
            "DebugHookConfig": {"S3OutputPath": "s3://b"},
            "ModelPackageConfig": {},
            "AlgorithmSpecification": {"TrainingImage": "i", "ContainerEntrypoint": ["x"]},
            "ResourceConfig": {"InstanceType": "ml.x", "VolumeSizeInGB": 1, "InstanceCount": 1},
        }
    )
    assert found.cluster.current_instance_type == "ml.x"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"HyperParameter": {}}, "unknown key 'HyperParameter'; did you mean 'HyperParameters'?"),
        ({"hyperparameters": {}}, "unknown key 'hyperparameters'; did you mean 'HyperParameters'?"),
        ({"AlgorithmSpecification": {"X": 1}}, "AlgorithmSpecification: unknown key 'X'"),
        (channel(Foo=1), "InputDataConfig[0]: unknown key 'Foo'"),
        (channel(DataSource={"S3": {}}), "InputDataConfig[0].DataSource: unknown key 'S3'"),
        (
            channel(DataSource={"S3DataSource": {**S3, "S3URI": "x"}}),
            "S3DataSource: unknown key 'S3URI'; did you mean 'S3Uri'?",
        ),
        (channel(ShuffleConfig={"seed": 1}), "ShuffleConfig: unknown key 'seed'"),
        ({"OutputDataConfig": {"S3Uri": "s3://b"}}, "OutputDataConfig: unknown key 'S3Uri'"),
        ({"CheckpointConfig": {"S3Path": "s3://b"}}, "CheckpointConfig: unknown key 'S3Path'"),
        ({"StoppingCondition": {"MaxRuntime": 1}}, "StoppingCondition: unknown key 'MaxRuntime'"),
        ({"ResourceConfig": {"Count": 1}}, "ResourceConfig: unknown key 'Count'"),
        ({"RetryStrategy": {"x": 1}}, "RetryStrategy: unknown key 'x'"),
        ({"TensorBoardOutputConfig": {"x": 1}}, "TensorBoardOutputConfig: unknown key 'x'"),
    ],
)
def test_an_unknown_key_is_named(request_: Any, reason: str) -> None:
    found = parse(request_).problems
    assert any(text.startswith("job.json: ") and reason in text for text in found), found


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"TrainingJobName": "a/b"}, "TrainingJobName: must be letters, digits and hyphens"),
        ({"HyperParameters": []}, "HyperParameters: must be an object, not a list"),
        (
            {"AlgorithmSpecification": {"TrainingInputMode": "Foo"}},
            "TrainingInputMode: must be 'File', 'Pipe' or 'FastFile', not 'Foo'",
        ),
        ({"AlgorithmSpecification": {"ContainerArguments": "x"}}, "must be a list, not 'x'"),
        ({"InputDataConfig": {}}, "InputDataConfig: must be a list, not an object"),
        ({"InputDataConfig": [{}]}, "InputDataConfig[0].ChannelName: is missing"),
        ({"InputDataConfig": ["t"]}, "InputDataConfig[0]: must be an object, not 't'"),
        ({"OutputDataConfig": "file:///x"}, "OutputDataConfig: must be an object, not 'file:///x'"),
        ({"CheckpointConfig": {}}, "CheckpointConfig.S3Uri: is missing"),
        (channel(DataSource={"S3DataSource": "s3://b"}), "S3DataSource: must be an object"),
        ({"AlgorithmSpecification": {"MetricDefinitions": [1]}}, "[0]: must be an object, not 1"),
        ({"AlgorithmSpecification": "image"}, "AlgorithmSpecification: must be an object"),
        ({"StoppingCondition": []}, "StoppingCondition: must be an object, not a list"),
        (channel(ChannelName="../x"), "'../x' cannot be the name of a channel"),
        (channel(InputMode="file"), "InputMode: must be 'File', 'Pipe' or 'FastFile', not 'file'"),
        (channel(CompressionType="Zip"), "CompressionType: must be 'None' or 'Gzip', not 'Zip'"),
        (channel(ShuffleConfig={"Seed": "x"}), "ShuffleConfig.Seed: must be a whole number"),
        (
            channel(DataSource={"S3DataSource": {"S3Uri": "https://b/p"}}),
            "S3Uri: must be s3://bucket/prefix or file:///path, not 'https://b/p'",
        ),
        (
            channel(DataSource={"S3DataSource": {"S3Uri": "file://rel"}}),
            "S3Uri: must be s3://bucket/prefix or file:///path, not 'file://rel'",
        ),
        (channel(DataSource={"S3DataSource": {}}), "S3DataSource.S3Uri: is missing"),
        (
            channel(DataSource={"S3DataSource": {**S3, "S3DataType": "Foo"}}),
            "S3DataType: must be 'S3Prefix', 'ManifestFile' or 'AugmentedManifestFile', not 'Foo'",
        ),
        (
            channel(DataSource={"S3DataSource": {**S3, "S3DataType": "AugmentedManifestFile"}}),
            "AttributeNames: is missing",
        ),
        (
            channel(DataSource={"S3DataSource": S3, "FileSystemDataSource": {}}),
            "must hold one data source, not S3DataSource and FileSystemDataSource",
        ),
        (
            channel(DataSource={"FileSystemDataSource": {"DirectoryPath": "rel"}}),
            "DirectoryPath: must be an absolute path",
        ),
        (channel(DataSource={"DatasetSource": {}}), "is available on SageMaker only"),
        (
            {"TrainingJobName": "j", "OutputDataConfig": {"S3OutputPath": "/out"}},
            "S3OutputPath: must be s3://bucket/prefix or file:///path, not '/out'",
        ),
        (
            {"OutputDataConfig": {"S3OutputPath": "file:///out"}},
            "TrainingJobName: is missing, and OutputDataConfig needs it",
        ),
        (
            {"CheckpointConfig": {"S3Uri": "s3://b", "LocalPath": "rel"}},
            "LocalPath: must be an absolute path, not 'rel'",
        ),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 0}}, "whole number of at least 1, not 0"),
        (
            {"AlgorithmSpecification": {"MetricDefinitions": [{"Name": "m", "Regex": "("}]}},
            "'(' is not a regular expression",
        ),
        (
            {"AlgorithmSpecification": {"MetricDefinitions": [{"Name": "m", "Regex": "x"}]}},
            "'x' has no (group) that holds the value",
        ),
        ({"Environment": {"a-b": "1"}}, "Environment: 'a-b' cannot be the name of a variable"),
        ({"Environment": {"A": 1}}, "Environment.A: must be a string, not 1"),
        (
            {"Environment": {"API_TOKEN": 12345}},
            "Environment.API_TOKEN: must be a string, not '***'",
        ),
        ({"ResourceConfig": {"InstanceCount": 2}}, "InstanceCount: is 2, but 1 host is known"),
    ],
)
def test_a_wrong_value_is_named(request_: Any, reason: str) -> None:
    found = problem(request_)
    assert found.startswith("job.json: ")
    assert reason in found


def test_a_name_that_no_folder_can_have_is_a_problem() -> None:
    assert job({"TrainingJobName": "x" * 255}).name == "x" * 255
    assert "TrainingJobName: must be" in problem({"TrainingJobName": "x" * 256})


def test_a_data_source_that_is_null_is_none() -> None:
    """Programs that write requests leave such members behind."""
    sources = {"S3DataSource": S3, "FileSystemDataSource": None, "DatasetSource": None}
    (found,) = job(channel(DataSource=sources)).channels
    assert found.source == Source(uri="s3://b/p")


def test_two_channels_of_one_name_are_a_problem() -> None:
    given = channel()["InputDataConfig"] * 2
    assert "another channel has the name 't' already" in problem({"InputDataConfig": given})


def test_files_win_over_the_request_key_by_key() -> None:
    found = job(
        {
            "HyperParameters": {"a": "1", "b": "1", "sagemaker_program": "r.py"},
            "InputDataConfig": [
                {"ChannelName": "t", "DataSource": {"S3DataSource": S3}, "ContentType": "r"}
            ],
            "ResourceConfig": {"InstanceType": "ml.r"},
        },
        hyperparameters={"b": "2"},
        inputdataconfig={"t": {"TrainingInputMode": "Pipe"}, "u": {}},
        resourceconfig={"hosts": ["h"], "current_host": "h"},
    )
    assert found.hyperparameters == {"a": 1, "b": 2}
    assert found.program == "r.py"
    assert [(c.name, c.mode, c.content_type) for c in found.channels] == [
        ("t", "Pipe", "r"),
        ("u", "File", None),
    ]
    assert found.channels[0].source == Source(uri="s3://b/p")
    assert found.resource_config == {
        "hosts": ["h"],
        "current_host": "h",
        "current_instance_type": "ml.r",
    }


def test_the_hosts_of_a_request_are_those_of_the_variables() -> None:
    found = job(
        {"ResourceConfig": {"InstanceCount": 2, "InstanceType": "ml.r"}},
        {"SM_RUNTIME_HOSTS": "algo-1,algo-2", "SM_RUNTIME_CURRENT_HOST": "algo-2"},
    )
    assert found.cluster.leader == "algo-1"
    assert found.cluster.current_group_hosts == ("algo-1", "algo-2")
    assert found.resource_config["instance_groups"][0]["instance_type"] == "ml.r"


def test_a_file_may_leave_to_a_request_what_it_must_say_alone() -> None:
    found = job({}, resourceconfig={"network_interface_name": "ib0"})
    assert found.cluster.hosts == ("box",)
    assert found.cluster.network_interface == "ib0"


def test_the_name_of_the_job_may_come_from_the_environment() -> None:
    request = {"OutputDataConfig": {"S3OutputPath": "file:///out"}}
    assert job(request, {"TRAINING_JOB_NAME": "j"}).name == "j"


def test_settings_may_stand_in_the_environment_of_the_request() -> None:
    found = job(
        {
            "Environment": {"SM_RUNTIME_INSTALL": "false", "SM_RUNTIME_ARGS": '["--env"]'},
            "AlgorithmSpecification": {"ContainerArguments": ["--request"]},
        },
        {"SM_RUNTIME_INSTALL": "true"},
    )
    assert found.options.install is False
    assert found.options.args == ("--env",)


THREE = {"SM_RUNTIME_HOSTS": "algo-1,algo-2,algo-3"}
GROUPS = [
    {"InstanceGroupName": "readers", "InstanceType": "ml.c5.large", "InstanceCount": 2},
    {"InstanceGroupName": "trainers", "InstanceType": "ml.g5.large", "InstanceCount": 1},
]
GROUPED = {"ResourceConfig": {"InstanceGroups": GROUPS}}


@pytest.mark.parametrize(
    ("host", "group", "instance_type"),
    [
        ("algo-1", "readers", "ml.c5.large"),
        ("algo-2", "readers", "ml.c5.large"),
        ("algo-3", "trainers", "ml.g5.large"),
    ],
)
def test_groups_are_formed_from_the_list_of_hosts_in_order(
    host: str, group: str, instance_type: str
) -> None:
    found = job(GROUPED, {**THREE, "SM_RUNTIME_CURRENT_HOST": host})
    assert found.resource_config == {
        "current_host": host,
        "current_instance_type": instance_type,
        "current_group_name": group,
        "hosts": ["algo-1", "algo-2", "algo-3"],
        "instance_groups": [
            {
                "instance_group_name": "readers",
                "instance_type": "ml.c5.large",
                "hosts": ["algo-1", "algo-2"],
            },
            {
                "instance_group_name": "trainers",
                "instance_type": "ml.g5.large",
                "hosts": ["algo-3"],
            },
        ],
        "network_interface_name": "eth0",
    }
    variables = environment.variables(found, Hardware(cpus=1))
    assert variables["SM_CURRENT_INSTANCE_GROUP"] == group
    assert variables["SM_CURRENT_INSTANCE_TYPE"] == instance_type
    assert variables["SM_INSTANCE_GROUPS"] == '["readers","trainers"]'
    assert variables["SM_IS_HETERO"] == "true"
    assert json.loads(variables["SM_INSTANCE_GROUPS_DICT"])["trainers"]["hosts"] == ["algo-3"]
    hosts = json.loads(variables["SM_CURRENT_INSTANCE_GROUP_HOSTS"])
    assert (host in hosts, len(hosts)) == (True, 2 if group == "readers" else 1)


RESOURCE_COUNTS: list[tuple[dict[str, Any], str]] = [
    ({"InstanceGroups": GROUPS}, "InstanceGroups: asks for 3 hosts, but 1 host is known"),
    ({"InstanceCount": 2}, "InstanceCount: is 2, but 1 host is known"),
    ({"SelectedInstanceCount": 2}, "SelectedInstanceCount: is 2, but 1 host is known"),
    (
        {"InstancePreferences": [{"InstanceType": "a", "InstanceCount": n} for n in (4, 2)]},
        "InstancePreferences: asks for 2 or 4 hosts, but 1 host is known",
    ),
    (
        {"InstanceCount": 2, "InstancePreferences": [{"InstanceType": "a"}]},
        "InstancePreferences: asks for 2 hosts, but 1 host is known",
    ),
]


@pytest.mark.parametrize(("resources", "reason"), RESOURCE_COUNTS)
def test_a_host_does_not_believe_to_be_alone(resources: dict[str, Any], reason: str) -> None:
    found = problem({"ResourceConfig": resources})
    assert found == (
        f"job.json: ResourceConfig.{reason}; resourceconfig.json or SM_RUNTIME_HOSTS must name all"
    )


def test_more_hosts_than_the_groups_have_are_a_problem_too() -> None:
    hosts = {"SM_RUNTIME_HOSTS": "a,b,c,d", "SM_RUNTIME_CURRENT_HOST": "a"}
    assert "asks for 3 hosts, but 4 hosts are known" in problem(GROUPED, hosts)


def test_the_number_of_hosts_tells_which_preference_was_chosen() -> None:
    preferences = [
        {"InstanceType": "ml.a", "InstanceCount": 1},
        {"InstanceType": "ml.b", "InstanceCount": 3},
        {"InstanceType": "ml.c", "InstanceCount": 3},
    ]
    asked = {"ResourceConfig": {"InstancePreferences": preferences}}
    assert job(asked).cluster.current_instance_type == "ml.a"
    three = job(asked, {**THREE, "SM_RUNTIME_CURRENT_HOST": "algo-1"})
    assert three.cluster.current_instance_type == "local"  # either of two


def test_a_preference_without_a_number_leaves_the_hosts_open() -> None:
    asked = {"ResourceConfig": {"InstancePreferences": [{"InstanceType": "ml.a"}]}}
    assert job(asked).cluster.hosts == ("box",)


@pytest.mark.parametrize(
    ("resources", "reason"),
    [
        ({"InstanceCount": 2, "InstanceGroups": GROUPS}, "is 2, but InstanceGroups have 3 hosts"),
        ({"InstanceGroups": [{**GROUPS[0], "InstanceCount": None}]}, "InstanceCount: is missing"),
        ({"InstanceGroups": [{**GROUPS[0], "InstanceGroupName": ""}]}, "Name: is missing"),
        ({"InstanceGroups": [GROUPS[1], GROUPS[1]]}, "another group has the name 'trainers'"),
        ({"InstanceGroups": [{**GROUPS[0], "Count": 2}]}, "InstanceGroups[0]: unknown key 'Count'"),
        ({"InstanceGroups": {}}, "InstanceGroups: must be a list, not an object"),
        ({"InstanceGroups": ["x"]}, "InstanceGroups[0]: must be an object, not 'x'"),
        (
            {"InstanceGroups": [{**GROUPS[0], "InstanceCount": 10**400}]},
            "InstanceCount: must be a whole number of at most 2147483647, not 1000",
        ),
    ],
)
def test_what_is_wrong_with_groups_is_named(resources: dict[str, Any], reason: str) -> None:
    hosts = {**THREE, "SM_RUNTIME_CURRENT_HOST": "algo-1"}
    found = parse({"ResourceConfig": resources}, hosts).problems
    assert any(text.startswith("job.json: ") and reason in text for text in found), found
    assert not any("asks for" in text for text in found)


def test_the_groups_of_the_file_win_key_by_key() -> None:
    own = [
        {"instance_group_name": "mine", "instance_type": "ml.m", "hosts": ["algo-3", "algo-1"]},
        {"instance_group_name": "rest", "instance_type": "ml.r", "hosts": ["algo-2"]},
    ]
    resources = {
        "hosts": ["algo-1", "algo-2", "algo-3"],
        "current_host": "algo-2",
        "instance_groups": own,
    }
    found = job(GROUPED, resourceconfig=resources)
    assert found.resource_config == {
        **resources,
        "current_group_name": "rest",
        "current_instance_type": "ml.r",
    }
    assert found.cluster.current_group_hosts == ("algo-2",)
    named = job(GROUPED, resourceconfig={**resources, "current_group_name": "mine"})
    assert named.cluster.current_group == "mine"


def test_a_group_of_the_file_with_a_host_of_no_job_is_a_problem() -> None:
    group = {"instance_group_name": "g", "instance_type": "t", "hosts": ["algo-1", "other"]}
    resources = {"hosts": ["algo-1"], "current_host": "algo-1", "instance_groups": [group]}
    found = problem({}, resourceconfig=resources)
    assert "the host 'other' of the group 'g' is not one of the hosts 'algo-1'" in found


def test_a_channel_reaches_the_groups_that_it_names() -> None:
    def of(name: str, *groups: str) -> dict[str, Any]:
        source = {**S3, "InstanceGroupNames": list(groups)}
        return {"ChannelName": name, "DataSource": {"S3DataSource": source}}

    channels = [of("all"), of("read", "readers"), of("both", "readers", "trainers")]
    asked = {**GROUPED, "InputDataConfig": channels}
    names = {
        host: [c.name for c in job(asked, {**THREE, "SM_RUNTIME_CURRENT_HOST": host}).channels]
        for host in ("algo-1", "algo-3")
    }
    assert names == {"algo-1": ["all", "read", "both"], "algo-3": ["all", "both"]}
    found = job(asked, {**THREE, "SM_RUNTIME_CURRENT_HOST": "algo-3"})
    assert list(found.input_data_config) == ["all", "both"]


@pytest.mark.parametrize(
    ("hyperparameters", "leaders", "first"),
    [
        ({}, {"algo-1"}, "algo-1"),
        ({"sagemaker_mpi_enabled": "true"}, {"algo-1", "algo-3"}, "algo-1"),
        (
            {
                "sagemaker_mpi_enabled": "true",
                "sagemaker_distribution_instance_groups": '["trainers"]',
            },
            {"algo-3"},
            "algo-3",
        ),
    ],
)
def test_one_host_alone_has_the_artifacts_of_the_job(
    hyperparameters: dict[str, str], leaders: set[str], first: str
) -> None:
    """Each group may train by itself, under a leader of its own."""
    clusters = [
        job(
            {**GROUPED, "HyperParameters": hyperparameters},
            {**THREE, "SM_RUNTIME_CURRENT_HOST": host},
        ).cluster
        for host in ("algo-1", "algo-2", "algo-3")
    ]
    assert {cluster.leader for cluster in clusters} == leaders
    assert [cluster.current_host for cluster in clusters if cluster.is_first] == [first]


ENTRY = {
    "AlgorithmSpecification": {
        "ContainerEntrypoint": ["/bin/bash", "-c"],
        "ContainerArguments": ["x && y"],
    }
}


def test_an_entry_point_has_the_arguments_of_the_request_alone() -> None:
    found = job({**ENTRY, "HyperParameters": {"lr": "0.1", "sagemaker_program": "train.py"}})
    assert found.entry_point == ("/bin/bash", "-c")
    assert environment.arguments(found) == ("x && y",)
    assert environment.variables(found, Hardware(cpus=1))["SM_HP_LR"] == "0.1"


def test_the_setting_for_arguments_wins_with_an_entry_point_as_without() -> None:
    assert environment.arguments(job(ENTRY, {"SM_RUNTIME_ARGS": '["z"]'})) == ("z",)


def test_arguments_without_an_entry_point_follow_the_hyperparameters() -> None:
    asked = {
        "AlgorithmSpecification": {"ContainerArguments": ["--more", "1"]},
        "HyperParameters": {"lr": "0.1"},
    }
    assert environment.arguments(job(asked)) == ("--lr", "0.1", "--more", "1")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "must name a program"),
        ([""], "must name a program"),
        ([None], "ContainerEntrypoint[0]: must be a string"),
        (["a\0b"], "NUL"),
        ("x", "must be a list, not 'x'"),
        ([1], "ContainerEntrypoint[0]: must be a string, not 1"),
    ],
)
def test_an_entry_point_that_is_none_is_a_problem(value: Any, reason: str) -> None:
    found = parse({"AlgorithmSpecification": {"ContainerEntrypoint": value}}).problems
    assert any(reason in text for text in found), found


def test_an_entry_point_decides_by_itself_on_distributed_training() -> None:
    asked = {**ENTRY, "HyperParameters": {"sagemaker_mpi_enabled": "true"}}
    hosts = {"SM_RUNTIME_HOSTS": "a,b", "SM_RUNTIME_CURRENT_HOST": "a"}
    hook = {"SAGEMAKER_TRAINING_MODULE": "a.b:c"}
    parsed = parse(asked, {**hosts, **hook})
    assert parsed.job is not None
    assert distribution.plan(parsed.job, Hardware(cpus=1)).kind == distribution.PLAIN
    assert parsed.job.training_module is None
    (warning,) = parsed.warnings
    assert "sagemaker_mpi_enabled: has no effect" in warning


def test_what_a_file_says_of_checkpoints_wins_where_the_request_wants_them() -> None:
    wanted = {"CheckpointConfig": {"S3Uri": "s3://b/c", "LocalPath": "/request"}}
    here = {"LocalPath": "/file"}
    assert job(wanted, checkpointconfig=here).checkpoints == Sync(
        local_path="/file", uri="s3://b/c"
    )
    assert job({}, checkpointconfig=here).checkpoints is None
    relative = problem(wanted, checkpointconfig={"LocalPath": "x"})
    assert relative.startswith("checkpointconfig.json: LocalPath: must be an absolute path")


def test_what_is_read_of_a_job_with_problems_is_what_is_right_with_it() -> None:
    parsed = parse(
        {
            "TrainingJobName": "a/b",
            "HyperParameters": {"lr": "0.1", "bad=": "1"},
            "InputDataConfig": [
                {"ChannelName": "good", "DataSource": {"S3DataSource": S3}},
                {"ChannelName": "bad", "InputMode": "Fiel", "DataSource": {"S3DataSource": S3}},
            ],
        }
    )
    assert parsed.job is None
    assert dict(parsed.draft.hyperparameters) == {"lr": 0.1}
    assert [channel.name for channel in parsed.draft.channels] == ["good"]
    assert parsed.unread == frozenset()


def test_a_document_that_cannot_be_read_is_no_empty_one() -> None:
    found = {"hyperparameters": Document("hyperparameters.json", b"{")}
    assert load.parse(found, {}, Paths(), "box").unread == {"hyperparameters"}

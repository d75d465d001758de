"""A CreateTrainingJob request makes a self-managed job."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sm_runtime import contract
from sm_runtime.contract import Parsed
from sm_runtime.model import Job, Metric, Output, Source, Sync
from sm_runtime.paths import Paths
from sm_runtime.reader import Document

S3 = {"S3DataType": "S3Prefix", "S3Uri": "s3://b/p"}


def parse(request: Any, environ: dict[str, str] | None = None, **documents: Any) -> Parsed:
    found = {
        name: Document(f"{name}.json", json.dumps(value).encode())
        for name, value in {"job": request, **documents}.items()
    }
    return contract.parse(found, environ or {}, Paths(), "box")


def job(request: Any, environ: dict[str, str] | None = None, **documents: Any) -> Job:
    parsed = parse(request, environ, **documents)
    assert parsed.problems == ()
    assert parsed.job is not None
    return parsed.job


def problem(request: Any, environ: dict[str, str] | None = None, **documents: Any) -> str:
    parsed = parse(request, environ, **documents)
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
        (channel(DataSource={"DatasetSource": {}}), "is only to be had on the platform"),
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
            "'(' is no regular expression",
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

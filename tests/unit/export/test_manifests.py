"""A request as manifests: golden files, the published schemas, and what is where."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sm_runtime.export import options
from sm_runtime.export.asked import gpus_of
from sm_runtime.export.command import text_of
from tests import dry
from tests.harness import Base
from tests.manifests import (
    ENGINES,
    REQUEST,
    SECRET,
    VERSIONS,
    asked,
    container,
    exported,
    job,
    of_kind,
    pod,
    validate,
    variables,
)

GOLDEN = Path(__file__).parents[1] / "golden"
SINGLE: Any = {
    "TrainingJobName": "digits",
    "HyperParameters": {"sagemaker_program": "train.py"},
    "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1},
}
EVERYTHING: dict[str, Any] = {
    "namespace": "training",
    "image": "sm-runtime:cpu",
    "gpus": 1,
    "cpu": "7500m",
    "memory": "30Gi",
    "cluster_secret": "hosts",
    "env_secrets": ("aws", "wandb"),
    "claims": ("data:/data", "data:/more", "models:/models"),
    "service_account": "trainer",
}
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "kubernetes": ("kubernetes", REQUEST, {}),
    "kubernetes-single": ("kubernetes", SINGLE, {"image": "sm-runtime:cpu"}),
    "kubernetes-all": (
        "kubernetes",
        {**REQUEST, "RetryStrategy": {"MaximumRetryAttempts": 2}},
        EVERYTHING,
    ),
    "kubeflow": ("kubeflow", {**REQUEST, "RetryStrategy": {"MaximumRetryAttempts": 2}}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_manifests_are_those_of_the_golden_file(name: str) -> None:
    engine, request, choices = CASES[name]
    assert text_of(exported(engine, request, **choices)) == (GOLDEN / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", CASES)
def test_the_published_schemas_accept_all_manifests(name: str) -> None:
    engine, request, choices = CASES[name]
    for document in exported(engine, request, **choices):
        validate(document)


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_of_kubernetes_accepts_all_that_a_job_may_have(version: str) -> None:
    engine, request, choices = CASES["kubernetes-all"]
    for document in exported(engine, request, **choices):
        validate(document, version)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_schemas_would_find_a_mistake(engine: str) -> None:
    documents = exported(engine)
    pod(documents)["restartPolice"] = "Never"
    with pytest.raises(Exception, match=r"restartPolice|does not know"):
        validate(documents[-1 if engine == "kubernetes" else -2])


@pytest.mark.parametrize("engine", ENGINES)
def test_the_secret_of_the_hosts_stands_in_a_secret_alone(engine: str) -> None:
    documents = exported(engine)
    (secret,) = of_kind(documents, "Secret")
    assert SECRET in secret["stringData"].values()
    assert SECRET not in json.dumps([one for one in documents if one is not secret])
    assert variables(documents)["SM_RUNTIME_CLUSTER_SECRET"] == SECRET
    assert of_kind(exported(engine, cluster_secret="mine"), "Secret") == []


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "part",
    [
        {"Environment": {"HF_TOKEN": "hf_abcdefghijklmnop"}},
        {"HyperParameters": {"db_password": "correct-horse-battery"}},
        {"Environment": {"URL": "https://me:hunter22@example.com/x"}},
    ],
)
def test_a_request_that_holds_a_secret_is_one(engine: str, part: Any) -> None:
    request = {**REQUEST, **part}
    documents = exported(engine, request)
    (stored,) = [one for one in of_kind(documents, "Secret") if "job.json" in one["stringData"]]
    assert json.loads(stored["stringData"]["job.json"]) == request
    value = next(iter(next(iter(part.values())).values()))
    assert value not in json.dumps([one for one in documents if one is not stored])
    (volume,) = [one for one in pod(documents)["volumes"] if one["name"] == "request"]
    assert volume["secret"] == {"secretName": stored["metadata"]["name"]}
    validate(stored)


def test_a_reference_to_a_secret_is_none() -> None:
    request = {**REQUEST, "Environment": {"HF_TOKEN": '{"$file": "/run/secrets/hf"}'}}
    assert len(of_kind(exported("kubernetes", request), "ConfigMap")) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_the_request_is_where_the_runtime_looks_for_it(engine: str) -> None:
    documents = exported(engine)
    (stored,) = of_kind(documents, "ConfigMap")
    assert json.loads(stored["data"]["job.json"]) == REQUEST
    (mount,) = [one for one in container(documents)["volumeMounts"] if one["name"] == "request"]
    assert (mount["mountPath"], mount["subPath"]) == ("/opt/ml/input/config/job.json", "job.json")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_stop_has_the_seconds_that_the_request_says(engine: str) -> None:
    documents = exported(engine)
    assert pod(documents)["terminationGracePeriodSeconds"] == 120
    own = {**REQUEST, "Environment": {"SM_RUNTIME_STOP_TIMEOUT_SECONDS": "600"}}
    documents = exported(engine, own)
    assert pod(documents)["terminationGracePeriodSeconds"] == 600
    assert variables(documents)["SM_RUNTIME_STOP_TIMEOUT_SECONDS"] == "600"


def test_hosts_wait_as_long_as_the_request_lets_them_be_pending() -> None:
    def seconds(**parts: Any) -> str:
        documents = exported("kubernetes", {**REQUEST, **parts})
        return variables(documents)["SM_RUNTIME_PEER_WAIT_SECONDS"]

    assert seconds() == "1800"
    assert seconds(StoppingCondition={"MaxPendingTimeInSeconds": 7200}) == "7200"
    hyperparameters = {"sagemaker_runtime_peer_wait_seconds": "60"}
    assert seconds(HyperParameters=hyperparameters) == "60"


@pytest.mark.parametrize(("retries", "limit"), [(0, 0), (1, 2), (3, 6)])
def test_a_job_may_fail_once_on_each_host_for_each_retry(retries: int, limit: int) -> None:
    request = {**REQUEST, "RetryStrategy": {"MaximumRetryAttempts": retries}}
    assert job(exported("kubernetes", request))["backoffLimit"] == limit
    assert job(exported("kubeflow", request))["backoffLimit"] == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_single_host_needs_no_secret_and_waits_for_nobody(engine: str) -> None:
    documents = exported(engine, SINGLE, image="i")
    assert of_kind(documents, "Secret") == of_kind(documents, "Service") == []
    assert "SM_RUNTIME_PEER_WAIT_SECONDS" not in variables(documents)


@pytest.mark.parametrize(
    ("instance_type", "gpus"),
    [
        ("ml.m5.xlarge", 0),
        ("local", 0),
        ("ml.g5.xlarge", 1),
        ("ml.g5.16xlarge", 1),
        ("ml.g5.48xlarge", 8),
        ("ml.p3.8xlarge", 4),
        ("ml.p4d.24xlarge", 8),
        ("ml.p6-b200.48xlarge", 8),
        ("ml.p99.48xlarge", None),
        ("ml.trn1.32xlarge", None),
        ("local_gpu", None),
        ("", 0),
    ],
)
def test_gpus_are_those_of_the_instance_type(instance_type: str, gpus: int | None) -> None:
    assert gpus_of(instance_type) == gpus


def group(name: str, kind: str) -> dict[str, Any]:
    return {"InstanceGroupName": name, "InstanceType": kind, "InstanceCount": 1}


def test_all_hosts_of_a_job_have_the_same_gpus() -> None:
    mixed = {"InstanceGroups": [group("a", "ml.g5.xlarge"), group("b", "ml.c5.xlarge")]}
    request = {**REQUEST, "ResourceConfig": mixed}
    (problem,) = asked("kubernetes", request).problems
    assert problem.startswith("--gpus: has to say how many GPUs each host gets: 'ml.c5.xlarge' has")
    documents = exported("kubernetes", request, gpus=1)
    assert job(documents)["completions"] == 2
    assert container(documents)["resources"]["limits"] == {"nvidia.com/gpu": 1}


@pytest.mark.parametrize(
    ("parts", "choices", "problem"),
    [
        ({"AlgorithmSpecification": {}}, {}, "job.json: AlgorithmSpecification.TrainingImage: is"),
        ({"TrainingJobName": None, "OutputDataConfig": None}, {}, "job.json: TrainingJobName: is"),
        ({"TrainingJobName": "n" * 62}, {}, f"--name: '{'n' * 62}' must have at most 61 char"),
        ({}, {"name": "My_Job"}, "--name: must be lower-case letters, digits and hyphens, not 'My"),
        ({}, {"cpu": "many"}, "--cpu: must be a quantity like 4 or 16Gi, not 'many'"),
        ({}, {"claims": ("data",)}, "--claim: must be NAME:/FOLDER, not 'data'"),
        ({}, {"env_secrets": ("A B",)}, "--env-secret: 'A B' cannot be the name of an object"),
        ({}, {"gpus": -1}, "--gpus: must be a whole number of at least 0, not -1"),
        (
            {"ResourceConfig": {"InstanceType": "ml.p99.xlarge", "InstanceCount": 1}},
            {},
            "--gpus: has to say how many NVIDIA GPUs a host of 'ml.p99.xlarge' has",
        ),
        (
            {"ResourceConfig": {"InstanceType": "local", "InstanceCount": 2_000_000_000}},
            {"name": "many"},
            "job.json: ResourceConfig: asks for 2000000000 hosts, but 65536 are the most",
        ),
        (
            {"RetryStrategy": {"MaximumRetryAttempts": "often"}},
            {},
            "job.json: RetryStrategy.MaximumRetryAttempts: must be a whole number of at least 0",
        ),
        ({"Environment": {"LONG": "x" * 1_000_000}}, {}, "job.json: is longer than 1000000 bytes"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(parts: Any, choices: Any, problem: str) -> None:
    result = asked("kubernetes", {**REQUEST, **parts}, **choices)
    assert result.asked is None
    assert [one[: len(problem)] for one in result.problems] == [problem]


def test_a_name_is_made_of_the_jobs() -> None:
    def name(text: str, engine: str = "kubernetes") -> str:
        (made, *_) = exported(engine, {**REQUEST, "TrainingJobName": text})
        return made["metadata"]["name"].removesuffix("-request")

    assert name("Mnist.run_7") == "mnist-run-7"
    assert name("2024-06-01") == "job-2024-06-01"
    assert name("n" * 54, "kubeflow") == "n" * 54  # and -node-0-1


def test_a_request_without_a_name_takes_that_of_the_job() -> None:
    request = {key: value for key, value in REQUEST.items() if key != "TrainingJobName"}
    assert variables(exported("kubernetes", request, name="mnist"))["TRAINING_JOB_NAME"] == "mnist"


def test_folders_that_end_with_the_container_are_warned_of() -> None:
    request = {**REQUEST, "OutputDataConfig": {"S3OutputPath": "file:///models/a"}}
    (warning,) = asked("kubernetes", request).warnings
    where = "job.json: OutputDataConfig.S3OutputPath"
    assert warning.startswith(f"{where}: /models/a is a folder of the container, which ends with")
    assert asked("kubernetes", request, claims=("c:/models",)).warnings == ()


def test_a_wrong_request_has_the_sentences_of_check(base: Base) -> None:
    request = {
        "TrainingJobName": "a/b",
        "HyperParameters": {"long": "x" * 200_000, "sagemaker_mpi_enabled": "perhaps"},
        "InputDataConfig": [
            {"ChannelName": "mode", "InputMode": "Fiel"},
            {"ChannelName": "nowhere"},
        ],
        "AlgorithmSpecification": {"TrainingImage": "i"},
        "Environment": {"SM_RUNTIME_STALL_SECONDS": "soon"},
        "ResourceConfg": {},
    }
    path = base.write("input/config/job.json", request)
    said = dry.look(base, "check")
    made = dry.look(base, "export", "--kubernetes", str(path))
    assert (said.status, made.status, made.out) == (1, 1, "")
    found = [line.partition(" ERROR ")[2].strip() for line in made.log.splitlines()]
    told = [line for line in said.out.splitlines() if line in found]
    assert len(found) >= 6
    assert [line for line in found if line not in told] == []


def test_a_sentence_shows_no_secret(base: Base) -> None:
    where = "file:///data/hunter22secret"
    request = {
        **REQUEST,
        "HyperParameters": {"password": "hunter22secret"},
        "CheckpointConfig": {"S3Uri": where},
    }
    path = base.write("request.json", request)
    made = dry.look(base, "export", "--kubernetes", str(path))
    assert "CheckpointConfig.S3Uri: /data/*** is a folder" in made.log


@pytest.mark.parametrize("text", ["", "[]", "{", "\0"])
def test_what_is_no_request_is_one_sentence(base: Base, text: str) -> None:
    path = base.write("request.json", text)
    made = dry.look(base, "export", "--kubernetes", str(path), "--name", "n", "--image", "i")
    assert (made.status, made.out) == (1, "")
    assert len(made.log.splitlines()) == 1 and str(path) in made.log


def test_a_request_that_does_not_exist_is_one_sentence(base: Base) -> None:
    made = dry.look(base, "export", "--kubeflow", f"{base.root}/none.json")
    assert made.status == 1 and made.log.endswith("none.json: does not exist\n")


def test_each_export_makes_a_secret_of_its_own(base: Base) -> None:
    path = base.write("request.json", REQUEST)
    made = [
        of_kind(
            list(yaml.safe_load_all(dry.look(base, "export", "--kubernetes", str(path)).out)),
            "Secret",
        )
        for _ in range(2)
    ]
    found = {secret["stringData"]["cluster-secret"] for (secret,) in made}
    assert len(found) == 2 and min(map(len, found)) >= 40


def test_without_pyyaml_manifests_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = exported("kubernetes")
    monkeypatch.setitem(sys.modules, "yaml", None)
    text = text_of(documents)
    monkeypatch.undo()
    assert [json.loads(part) for part in text.split("---\n")[1:]] == documents
    assert list(yaml.safe_load_all(text)) == documents


@given(st.text())
def test_yaml_holds_each_text_as_it_is(text: str) -> None:
    document = {"data": {"job.json": text, "more": f"a\n{text}\nb"}}
    assert yaml.safe_load(text_of([document])) == document


PAGE = (Path(__file__).parents[3] / "docs" / "kubernetes.md").read_text(encoding="utf-8")


def test_the_page_shows_what_its_commands_print() -> None:
    (request,) = re.findall(r"<<'END'\n(.*?\n)END\n", PAGE, re.DOTALL)
    documents = exported("kubernetes", request, env_secrets=("aws",))
    (shown,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert f"---\n{shown}" == text_of(of_kind(documents, "Job"))
    for document in (*documents, *exported("kubeflow", request, env_secrets=("aws",))):
        validate(document)
        if not document["apiVersion"].startswith("trainer."):
            assert f"{document['kind']} `{document['metadata']['name']}`" in PAGE


def test_the_page_has_every_option() -> None:
    parser = argparse.ArgumentParser()
    options.add(parser)
    known = set(re.findall(r"--[a-z-]+", parser.format_help())) - {"--help"}
    assert known == set(re.findall(r"`(--[a-z-]+)", PAGE)) | {"--kubernetes"}

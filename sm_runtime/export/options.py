"""The options of `sm-runtime export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the options say; what is empty they do not."""

    name: str = ""
    namespace: str = ""
    image: str = ""
    gpus: int | None = None
    cpu: str = ""
    memory: str = ""
    cluster_secret: str = ""
    """The name of a Secret that the cluster has; empty: one is made."""
    env_secrets: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    """``NAME:/FOLDER`` each."""
    service_account: str = ""


def add(parser: ArgumentParser) -> None:
    """Add the options to the command's parser."""
    engine = parser.add_mutually_exclusive_group(required=True)
    engine.add_argument("--kubernetes", action="store_true", help="an Indexed Job")
    engine.add_argument(
        "--kubeflow", action="store_true", help="a TrainJob and its TrainingRuntime"
    )
    parser.add_argument("request", metavar="JOB.JSON", help="a CreateTrainingJob request")
    for option, metavar, text in (
        ("--name", "NAME", "of the Job and its hosts (TrainingJobName)"),
        ("--namespace", "NAME", "where all objects go (that of kubectl)"),
        ("--image", "IMAGE", "the container image (AlgorithmSpecification.TrainingImage)"),
        ("--cpu", "QUANTITY", "CPUs of each host, as 8: request and limit"),
        ("--memory", "QUANTITY", "memory of each host, as 32Gi: request and limit"),
        ("--cluster-secret", "NAME", "a Secret that the cluster has (a new one is printed)"),
        ("--service-account", "NAME", "whose role the pods have, such as for S3"),
    ):
        parser.add_argument(option, metavar=metavar, default="", help=text)
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="NVIDIA GPUs of each host (those of InstanceType)"
    )
    for option, metavar, text in (
        ("--env-secret", "NAME", "a Secret whose keys become variables, such as credentials"),
        ("--claim", "NAME:FOLDER", "a PersistentVolumeClaim, and where it is mounted"),
    ):
        parser.add_argument(option, metavar=metavar, action="append", default=[], help=text)


def choices(parsed: Namespace) -> Choices:
    """Return what the command line says."""
    return Choices(
        name=parsed.name,
        namespace=parsed.namespace,
        image=parsed.image,
        gpus=parsed.gpus,
        cpu=parsed.cpu,
        memory=parsed.memory,
        cluster_secret=parsed.cluster_secret,
        env_secrets=tuple(parsed.env_secret),
        claims=tuple(parsed.claim),
        service_account=parsed.service_account,
    )

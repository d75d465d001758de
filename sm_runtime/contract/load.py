"""Turns the files of ``input/config`` and the environment into a Job; every AWS spelling is here.

The rules are those of the SageMaker training toolkit: which keys are the user's, how values are
decoded, who wins where two say something.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from sm_runtime.contract.channels import read_channels
from sm_runtime.contract.cluster import read_cluster
from sm_runtime.contract.engines import engine_of
from sm_runtime.contract.environment import remote_model_dir
from sm_runtime.contract.hyperparameters import (
    DISTRIBUTIONS,
    Hyperparameters,
    encoded,
    log_level,
    read_hyperparameters,
    read_options,
)
from sm_runtime.contract.reader import Document, Field, Findings, load, unfit
from sm_runtime.contract.request import Request, read_request
from sm_runtime.job.dataclass import dataclass, replace
from sm_runtime.job.model import BUILT_IN, Job, Json, Options, Paths, Sync


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A job, or the sentences that say why there is none."""

    job: Job | None
    draft: Job
    """The job as far as it can be read, also where something is wrong with it."""
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What was decided and is worth a line in the log."""
    unread: frozenset[str] = frozenset()
    """The documents that are there and say nothing, so wrong are they."""


def parse(
    documents: Mapping[str, Document],
    environ: Mapping[str, str],
    paths: Paths,
    hostname: str,
    whole_name: str = "",
) -> Parsed:
    """Return the job that ``documents`` and ``environ`` describe, or everything wrong with them.

    ``whole_name`` is ``hostname`` with its domain, where that is known.
    """
    findings = Findings()
    names = ["hyperparameters", "inputdataconfig", "resourceconfig", "job"]
    if "job" in documents:
        names.append("checkpointconfig")
    roots = {
        name: load(documents.get(name), f"{paths.config}/{name}.json", findings) for name in names
    }
    job = _job(roots, documents, environ, paths, (hostname, whole_name), findings)
    problems = tuple(dict.fromkeys(findings.problems))
    return Parsed(
        job=None if problems else job,
        draft=job,
        problems=problems,
        warnings=tuple(dict.fromkeys(findings.warnings)),
        notes=tuple(findings.notes),
        unread=frozenset(name for name in documents if name in roots and not roots[name].present),
    )


def _job(
    roots: Mapping[str, Field],
    documents: Mapping[str, Document],
    environ: Mapping[str, str],
    paths: Paths,
    names: tuple[str, str],
    findings: Findings,
) -> Job:
    managed = "job" not in documents
    request = Request() if managed else read_request(roots["job"], paths)
    settings = {**environ, **request.environment}
    raw = {**request.hyperparameters, **roots["hyperparameters"].fields()}
    keys = read_hyperparameters(raw)
    faults = len(findings.problems)
    engine = engine_of(settings, findings)
    cluster, resource_config = read_cluster(
        roots["resourceconfig"],
        request.resources,
        settings,
        names[0],
        keys.framework,
        engine=engine,
        whole_name=names[1],
        document=documents.get("resourceconfig"),
        bare=managed and not documents,
        managed=managed,
    )
    if len(findings.problems) > faults:  # nothing else is to be held to groups that may be others
        cluster = replace(cluster, groups=(), distribution_groups=())
    channels, input_data_config = read_channels(
        roots["inputdataconfig"], request.channels, cluster, paths
    )
    name = _name(roots["job"], request, settings)
    stop_seconds = engine.stop_seconds if engine else None
    options = read_options(settings, keys.decoded, request.arguments, findings, stop_seconds)
    if request.entry_point:
        _warn_of_distribution(keys, options, findings)
    user, texts = _tuned(keys, name, paths, findings)
    return Job(
        paths=paths,
        cluster=cluster,
        name=name,
        managed=managed,
        hyperparameters=user,
        texts=texts,
        reserved=keys.reserved,
        framework_parameters=keys.framework,
        hyperparameter_config=_written(roots["hyperparameters"], request, texts),
        resource_config=resource_config,
        input_data_config=input_data_config,
        channels=channels,
        program=_setting(settings, "SAGEMAKER_PROGRAM", findings)
        or keys.reserved.get("sagemaker_program")
        or None,
        entry_point=request.entry_point,
        submit_directory=keys.reserved.get("sagemaker_submit_directory")
        or _setting(settings, "SAGEMAKER_SUBMIT_DIRECTORY", findings)
        or None,
        region=_region(keys, settings),
        log_level=_log_level(keys, settings, findings),
        training_module=None if request.entry_point else _training_module(settings, findings),
        output=request.output,
        checkpoints=_checkpoints(roots.get("checkpointconfig"), request.checkpoints),
        tensorboard=request.tensorboard,
        metrics=request.metrics,
        environment=request.environment,
        max_runtime_seconds=request.max_runtime_seconds,
        signalled_whole=engine is not None and engine.signals_all,
        options=options,
    )


def _name(root: Field, request: Request, settings: Mapping[str, str]) -> str | None:
    name = request.name or settings.get("TRAINING_JOB_NAME") or None
    at = root.get("TrainingJobName")
    if request.output is not None and name is None and not at.spoiled:
        at.wrong("is missing, and OutputDataConfig needs it: artifacts go below the job's name")
    return name


def _written(root: Field, request: Request, texts: Mapping[str, str]) -> dict[str, Json]:
    """Return ``hyperparameters.json``: as it is, and with what the request has on top of it."""
    found = {key: at.value for key, at in root.fields().items()}
    for key, at in request.hyperparameters.items():
        found.setdefault(key, texts.get(key, encoded(at.value)))
    return found


def _warn_of_distribution(keys: Hyperparameters, options: Options, findings: Findings) -> None:
    """Note what asks for distributed training: an entry point does that by itself."""
    asked = [f"hyperparameter {flag}" for flag in DISTRIBUTIONS if keys.framework.get(flag)]
    asked += ["option launcher"] * bool(options.launcher)
    findings.warnings.extend(
        f"{name}: has no effect: ContainerEntrypoint is run on each host, once" for name in asked
    )


def _setting(settings: Mapping[str, str], name: str, findings: Findings) -> str:
    value = settings.get(name, "")
    reason = unfit(value)
    if reason:
        Field("environment", name, value, findings).wrong(reason)
    return value


def _training_module(settings: Mapping[str, str], findings: Findings) -> str | None:
    value = _setting(settings, "SAGEMAKER_TRAINING_MODULE", findings)
    module, _, function = value.partition(":")
    # A module may be called what no identifier is: sklearn-container. Names are those of files.
    if value and not (
        all(name and not re.search(r"[\s/]", name) for name in module.split("."))
        and all(name.isidentifier() for name in function.split("."))
    ):
        at = Field("environment", "SAGEMAKER_TRAINING_MODULE", value, findings)
        at.must("module:function, like my_framework.training:main")
    if value == BUILT_IN:
        findings.notes.append(
            f"SAGEMAKER_TRAINING_MODULE: {value} is not called: the runtime does the same itself"
        )
    return value or None


def _region(keys: Hyperparameters, settings: Mapping[str, str]) -> str:
    region = keys.reserved.get("sagemaker_region")
    names = ("AWS_REGION", "AWS_DEFAULT_REGION", "SAGEMAKER_REGION")
    return str(region or next((settings[name] for name in names if settings.get(name)), ""))


def _log_level(keys: Hyperparameters, settings: Mapping[str, str], findings: Findings) -> int:
    level = keys.reserved.get("sagemaker_container_log_level")
    if level is None:
        name = "SAGEMAKER_CONTAINER_LOG_LEVEL"
        level = log_level(Field("environment", name, settings.get(name) or None, findings))
    return 20 if level is None else int(level)


def _checkpoints(root: Field | None, asked: Sync | None) -> Sync | None:
    """Return where checkpoints go; what ``checkpointconfig.json`` says wins over the request.

    The file alone asks for nothing: it may be what an earlier job has left.
    """
    if root is None or asked is None or not root.present:
        return asked
    path, uri = root.get("LocalPath"), root.get("S3Uri")
    return Sync(
        local_path=path.absolute_path(asked.local_path),
        uri=(uri.uri() if uri.present else None) or asked.uri,
    )


def _tuned(
    keys: Hyperparameters, job_name: str | None, paths: Paths, findings: Findings
) -> tuple[dict[str, Json], dict[str, str]]:
    """Return the hyperparameters with a ``model_dir`` of its own for each job of a tuning job.

    All jobs of a tuning job are given the same one (SageMaker TensorFlow training toolkit).
    """
    model_dir = keys.user.get("model_dir")
    if (
        "_tuning_objective_metric" not in keys.reserved
        or not isinstance(model_dir, str)
        or not model_dir
        or model_dir.startswith(("/opt/ml", paths.base))
    ):
        return keys.user, keys.texts
    if job_name is None:
        findings.warnings.append(
            "environment: TRAINING_JOB_NAME: is missing in a tuning job, so model_dir is the same"
            " for all of its jobs"
        )
        return keys.user, keys.texts
    own = f"{model_dir.rstrip('/')}/{job_name}/model"
    findings.notes.append(f"Appending the training job name to model_dir: {own}")
    return {**keys.user, "model_dir": own}, {**keys.texts, "model_dir": json.dumps(own)}


def redirected(job: Job, lacks_s3: Callable[[], bool]) -> Job:
    """Return ``job`` with a local ``model_dir`` that is synced with the one that was given.

    TensorFlow's wheels lost their S3 file system in 2.6 (tensorflow/io has it): a script that
    writes to ``s3://`` fails there, or writes without the retries and the encryption that this
    runtime has.

    A managed job, whose arguments are the toolkit's, is left as it is where
    ``Options.redirect_model_dir`` says so, or says nothing and TensorFlow opens ``s3://`` itself
    (not so where ``lacks_s3``, which is asked then).
    """
    uri = remote_model_dir(job)
    wanted = job.options.redirect_model_dir
    if uri is None or wanted is False:
        return job
    by_itself = job.managed and wanted is None
    if by_itself and not lacks_s3():
        return job
    # Where the SageMaker SDK has it in local mode.
    path = job.paths.under("shared", "model")
    return replace(
        job,
        hyperparameters={**job.hyperparameters, "model_dir": path},
        texts={**job.texts, "model_dir": json.dumps(path)},
        hyperparameter_config={**job.hyperparameter_config, "model_dir": json.dumps(path)},
        model_dir=Sync(local_path=path, uri=uri, optional=by_itself),
    )


def redirection(job: Job) -> str | None:
    """Return the sentence that tells of the redirection, if there is one."""
    if job.model_dir is None:
        return None
    why = "TensorFlow has no S3 file system here: " if job.model_dir.optional else ""
    return (
        f"{why}model_dir is {job.model_dir.local_path} to the script and is synced with"
        f" {job.model_dir.uri} (SM_RUNTIME_REDIRECT_MODEL_DIR=0: the script gets the URI)"
    )

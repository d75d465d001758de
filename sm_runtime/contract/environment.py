"""What a job's script is given: its arguments, and the ``SM_*`` variables.

Names, order and encoding are those of the SageMaker training toolkit, to the byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import pairwise

from sm_runtime.job import location
from sm_runtime.job.model import Hardware, Job, Json
from sm_runtime.job.secrets import secrets_in

LONGEST = 131071
"""The most bytes of one argument or of one ``NAME=value``: Linux's MAX_ARG_STRLEN less its NUL."""

CLUSTER_SECRET = ("SM_RUNTIME_CLUSTER_SECRET", "SM_RUNTIME_CLUSTER_SECRET_FILE")
"""What the hosts of a job know each other by: for the runtime alone."""

MASTER_PORT = 7777
"""Where PyTorch's processes meet in jobs of the SDK 3."""

_IN_TRAINING_ENV = (
    "current_host", "current_instance_group", "current_instance_group_hosts",
    "current_instance_type", "distribution_instance_groups", "framework_module", "hosts",
    "input_config_dir", "input_data_config", "input_dir", "instance_groups",
    "instance_groups_dict", "is_hetero", "log_level", "model_dir", "module_dir", "module_name",
    "network_interface_name", "num_cpus", "num_gpus", "num_neurons", "output_data_dir",
    "output_dir", "output_intermediate_dir", "resource_config", "user_entry_point",
)  # fmt: skip
"""The variables, as ``variables`` names them, that ``SM_TRAINING_ENV`` has as well."""
_NOT_SHELL = re.compile(r"[^A-Z0-9_]")


def arguments(job: Job) -> tuple[str, ...]:
    """Return the arguments of the script: an option and a value for each hyperparameter.

    ``Options.argument_style`` may ask for bare flags, and for values as their JSON text. An entry
    point of the request gets the arguments of the request alone, as on the platform.
    """
    if job.entry_point:
        return job.options.args
    tokens: list[str] = []
    for key in sorted(job.hyperparameters):
        tokens += _tokens(job, key)
    return (*tokens, *job.options.args)


def oversized(job: Job) -> tuple[str, ...]:
    """Return a sentence for each hyperparameter that is too long to be an argument."""
    return tuple(
        f"hyperparameters: {key}: is {size} bytes long as an argument, the kernel allows {LONGEST}"
        for key in sorted(job.hyperparameters if not job.entry_point else ())
        if (size := max((_size(token) for token in _tokens(job, key)), default=0)) > LONGEST
    )


def variables(job: Job, hardware: Hardware) -> dict[str, str]:
    """Return the ``SM_*`` variables: the toolkit's in its order, then those of the SDK 3."""
    cluster, paths = job.cluster, job.paths
    values: dict[str, Json] = {
        "hosts": list(cluster.hosts),
        "network_interface_name": cluster.network_interface,
        "hps": dict(job.hyperparameters),
        "user_entry_point": job.program,
        "framework_params": dict(job.framework_parameters),
        "resource_config": dict(job.resource_config),
        "input_data_config": dict(job.input_data_config),
        "output_data_dir": paths.output_data,
        "channels": sorted(channel.name for channel in job.channels),
        "current_host": cluster.current_host,
        "current_instance_type": cluster.current_instance_type,
        "current_instance_group": cluster.current_group,
        "current_instance_group_hosts": list(cluster.current_group_hosts),
        "instance_groups": [group.name for group in cluster.groups],
        "instance_groups_dict": _groups(job),
        "distribution_instance_groups": list(cluster.distribution_groups),
        "is_hetero": len(cluster.groups) > 1,
        "module_name": str(_module_name(job)),
        "log_level": job.log_level,
        "framework_module": job.training_module,
        "input_dir": paths.input,
        "input_config_dir": paths.config,
        "output_dir": paths.output,
        "num_cpus": hardware.cpus,
        "num_gpus": hardware.gpus,
        "num_neurons": hardware.neurons,
        "model_dir": paths.model,
        "module_dir": job.submit_directory or paths.code,
        "training_env": None,
        "user_args": list(arguments(job)),
        "output_intermediate_dir": paths.intermediate,
    }
    values["training_env"] = _training_env(job, values)
    if cluster.topology:
        values["topology"] = cluster.topology
    values |= {f"channel_{channel.name}": channel.path for channel in job.channels}
    values |= {f"hp_{key}": value for key, value in job.hyperparameters.items()}
    found = {f"SM_{name.upper()}": _text(value) for name, value in values.items()}
    return {**found, **of_drivers(job)}


def of_drivers(job: Job) -> dict[str, str]:
    """Return what the SageMaker SDK 3 calls otherwise than the toolkit, or alone has.

    Source: ``sagemaker.train.container_drivers.scripts.environment``.
    """
    cluster, paths = job.cluster, job.paths
    hosts = sorted(cluster.hosts)
    return {
        "SM_SOURCE_DIR": paths.code,
        "SM_ENTRY_SCRIPT": job.program or "",
        "SM_INPUT_DATA_DIR": paths.data,
        "SM_OUTPUT_FAILURE": paths.failure,
        "SM_HOST_COUNT": str(len(hosts)),
        "SM_CURRENT_HOST_RANK": str(sum(host < cluster.current_host for host in hosts)),
        "SM_MASTER_ADDR": cluster.leader,
        "SM_MASTER_PORT": str(MASTER_PORT),
    }


def twins(
    variables: Mapping[str, str], sources: Mapping[str, str] | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return each variable whose name no shell can hold under a name that one can.

    A name that exists is never given away: then the second value says so, in the words of
    ``sources`` for a variable, or by the variable's name.
    """
    words = sources or {}
    found: dict[str, str] = {}
    owners = {name: name for name in variables}
    warnings = []
    for name, value in variables.items():
        legal = _NOT_SHELL.sub("_", name)
        if legal == name:
            continue
        if legal in owners:
            owner = owners[legal]
            warnings.append(
                f"{words.get(name, name)} and {words.get(owner, owner)} are both {legal} to a"
                " shell: it holds the value of the latter"
            )
            continue
        found[legal] = value
        owners[legal] = name
    return found, tuple(warnings)


def public(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that processes other than the runtime may have."""
    return {name: value for name, value in environ.items() if name not in CLUSTER_SECRET}


def process_environment(
    job: Job, hardware: Hardware, environ: Mapping[str, str], search_path: tuple[str, ...]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the whole environment of the script, and warnings about it.

    ``environ`` is what it inherits, less what is for the runtime alone; ``search_path`` goes to the
    front of ``PYTHONPATH``.
    """
    found = public({**environ, **job.environment})
    exported = variables(job, hardware)
    sources, warnings = _sources(job)
    legal, more = twins(exported, sources)
    python_path = [*search_path, found.get("PYTHONPATH", "")]
    found |= exported | legal
    found |= {
        "CURRENT_HOST": job.cluster.current_host,
        "SAGEMAKER_REGION": job.region,
        "SAGEMAKER_JOB_NAME": str(
            job.reserved.get("sagemaker_job_name") or found.get("SAGEMAKER_JOB_NAME", "")
        ),
    }
    if job.name and not job.managed:
        found["TRAINING_JOB_NAME"] = job.name
    if found.get("SAGEMAKER_BASE_DIR"):  # the script has another working folder than we
        found["SAGEMAKER_BASE_DIR"] = job.paths.base
    if any(python_path):
        found["PYTHONPATH"] = ":".join(part for part in python_path if part)
    if job.options.unbuffered:
        found.setdefault("PYTHONUNBUFFERED", "1")
    fitting = {name: value for name, value in found.items() if _size(name, value) <= LONGEST}
    dropped = [name for name in found if name not in fitting]
    if dropped:
        more += (
            f"{', '.join(dropped)}: left out of the script's environment, longer than the"
            f" {LONGEST} bytes that the kernel allows",
        )
    return fitting, warnings + more


def tensorflow_variables(job: Job, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what TensorFlow's S3 file system needs to know, where the script is given an S3 URI.

    The first three are those of the SageMaker TensorFlow training toolkit; what ``environ`` or the
    job's environment has is left alone.
    """
    if remote_model_dir(job) is None:
        return {}
    endpoint = location.endpoint(environ) or ""
    host = endpoint.rpartition("://")[2].rstrip("/")
    found = {
        "S3_REGION": job.region,
        "S3_USE_HTTPS": "0" if endpoint.startswith("http://") else "1",
        "TF_CPP_MIN_LOG_LEVEL": "1",
        "S3_REQUEST_TIMEOUT_MSEC": "60000",  # its 3 s are too few for a large file
        "AWS_LOG_LEVEL": "3",  # else each file that does not exist yet is an error in the log
        "S3_ENDPOINT": host,
    }
    return {
        name: value
        for name, value in found.items()
        if value and not environ.get(name) and name not in job.environment
    }


def remote_model_dir(job: Job) -> str | None:
    """Return the ``model_dir`` of a script that is in S3; None where it is not."""
    uri = job.hyperparameters.get("model_dir")
    return str(uri) if location.is_s3(uri) else None


def secrets(job: Job | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values that must not be shown, the longest first.

    They are those of variables, hyperparameters and verbatim arguments that look like secrets, also
    inside of JSON and of URLs. Without a job, which may be malformed, those of variables only.
    """
    texts: list[tuple[str, Json]] = [*environ.items()]
    if job is not None:
        texts += job.environment.items()
        for given in (job.hyperparameters, job.reserved, job.framework_parameters):
            texts += given.items()
        args = (*job.entry_point, *job.options.args)
        texts += pairwise(args)
        texts += (arg.partition("=")[::2] for arg in args if "=" in arg)
        texts += (("", arg) for arg in args)
    found = {secret for name, value in texts for secret in secrets_in(name, value)}
    found.update(job.referenced if job is not None else ())
    return tuple(sorted(found, key=lambda text: (-len(text), text)))


def _tokens(job: Job, key: str) -> tuple[str, ...]:
    """Return the arguments that one hyperparameter becomes."""
    value = job.hyperparameters[key]
    option = f"--{key}" if len(key) > 1 else f"-{key}" if key else ""
    style = job.options.argument_style
    if "flags" in style and (isinstance(value, bool) or value in ("True", "False")):
        return (option,) if value in (True, "True") else ()
    if "json" in style and not isinstance(value, str | bytes):
        text = job.texts.get(key)
        return option, json.dumps(value, separators=(",", ":")) if text is None else text
    return option, _argument(value)


def _argument(value: Json) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in sorted(value.items()))
    if value is None:
        return ""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _text(value: Json) -> str:
    """Return ``value`` as a variable holds it."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _size(*parts: str) -> int:
    """Return the bytes of ``parts``, joined by one character."""
    return len("=".join(parts).encode("utf-8", "surrogateescape"))


def _module_name(job: Job) -> str | None:
    return job.program.removesuffix(".py") if job.program else job.program


def _groups(job: Job) -> dict[str, Json]:
    """Return the instance groups by name, with all that the platform says about them."""
    given = job.resource_config.get("instance_groups")
    if given:
        return {group["instance_group_name"]: group for group in given}
    return {
        group.name: {
            "instance_group_name": group.name,
            "instance_type": group.instance_type,
            "hosts": list(group.hosts),
        }
        for group in job.cluster.groups
    }


def _training_env(job: Job, values: Mapping[str, Json]) -> dict[str, Json]:
    """Return what is in one variable: much of what the others hold, by their names, and more."""
    cluster = job.cluster
    model_parallel = _text(job.hyperparameters.get("mp_parameters"))
    return {
        **{name: values[name] for name in _IN_TRAINING_ENV},
        "additional_framework_parameters": dict(job.framework_parameters),
        "channel_input_dirs": {channel.name: channel.path for channel in job.channels},
        "distribution_hosts": list(cluster.distribution_hosts),
        "hyperparameters": dict(job.hyperparameters),
        "is_master": cluster.is_leader,
        "is_modelparallel_enabled": True if model_parallel not in ("", "{}") else None,
        "is_smddpmprun_installed": False,
        "is_smddprun_installed": False,
        "job_name": job.name,
        "master_hostname": cluster.leader,
        "topology": cluster.topology,
    }


def _sources(job: Job) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return which key each variable is from, and warnings of keys that share one."""
    found: dict[str, str] = {}
    warnings = []
    for prefix, kind, keys in (
        ("SM_CHANNEL_", "the channel", [channel.name for channel in job.channels]),
        ("SM_HP_", "the hyperparameter", list(job.hyperparameters)),
    ):
        for key in keys:
            name = prefix + key.upper()
            if name in found:
                warnings.append(
                    f"{found[name]} and {kind} {key!r} are both {name}: it holds the value of the"
                    " latter"
                )
            found[name] = f"{kind} {key!r}"
    return found, tuple(warnings)

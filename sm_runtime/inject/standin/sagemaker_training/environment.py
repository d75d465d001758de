"""The job as a script sees it, from the variables that the runtime has given to the process."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any, Mapping

from . import mapping, params

SAGEMAKER_BASE_PATH = "/opt/ml"
BASE_PATH_ENV = "SAGEMAKER_BASE_DIR"
HYPERPARAMETERS_FILE = "hyperparameters.json"
RESOURCE_CONFIG_FILE = "resourceconfig.json"
INPUT_DATA_CONFIG_FILE = "inputdataconfig.json"

base_dir = os.path.dirname(os.environ.get("SM_INPUT_DIR", "")) or os.environ.get(
    BASE_PATH_ENV, SAGEMAKER_BASE_PATH
)
code_dir = os.path.join(base_dir, "code")
model_dir = os.environ.get("SM_MODEL_DIR") or os.path.join(base_dir, "model")
input_dir = os.path.join(base_dir, "input")
input_config_dir = os.path.join(input_dir, "config")
output_dir = os.environ.get("SM_OUTPUT_DIR") or os.path.join(base_dir, "output")
output_data_dir = os.path.join(output_dir, "data")
output_intermediate_dir = os.path.join(output_dir, "intermediate")
hyperparameters_file_dir = os.path.join(input_config_dir, HYPERPARAMETERS_FILE)
input_data_config_file_dir = os.path.join(input_config_dir, INPUT_DATA_CONFIG_FILE)
resource_config_file_dir = os.path.join(input_config_dir, RESOURCE_CONFIG_FILE)

_LONGEST = 131071
"""The most bytes of ``NAME=value`` that the kernel allows."""
_PROPERTIES = {
    "additional_framework_parameters": "The reserved hyperparameters that are for frameworks.",
    "channel_input_dirs": "The folder of each channel.",
    "current_host": "The name of this host.",
    "current_instance_group": "The name of this host's instance group.",
    "current_instance_group_hosts": "The hosts of this host's instance group.",
    "current_instance_type": "The instance type of this host.",
    "distribution_hosts": "The hosts that take part in distributed training.",
    "distribution_instance_groups": "The instance groups that take part in distributed training.",
    "framework_module": "``SAGEMAKER_TRAINING_MODULE``, or None.",
    "hosts": "The names of all hosts.",
    "hyperparameters": "The user's hyperparameters, decoded.",
    "input_config_dir": "The folder of the configuration files.",
    "input_data_config": "What ``inputdataconfig.json`` says.",
    "input_dir": "The folder of the input.",
    "instance_groups": "The names of the instance groups.",
    "instance_groups_dict": "The instance groups by name.",
    "is_hetero": "Whether there are several instance groups.",
    "is_master": "Whether this host is the first of those that take part.",
    "is_modelparallel_enabled": "Whether model parallelism is asked for; None: it is not.",
    "is_smddpmprun_installed": "Whether SageMaker's launcher for model parallelism is there.",
    "is_smddprun_installed": "Whether SageMaker's launcher for data parallelism is there.",
    "job_name": "The name of the job, or None.",
    "log_level": "The level of the log, a number of ``logging``.",
    "master_hostname": "The first of the hosts that take part.",
    "model_dir": "The folder of the model.",
    "module_dir": "Where the code comes from.",
    "module_name": "The entry point without ``.py``.",
    "network_interface_name": "The network interface between the hosts.",
    "num_cpus": "The CPUs of this host.",
    "num_gpus": "The GPUs of this host.",
    "num_neurons": "The Neuron cores of this host.",
    "output_data_dir": "The folder of other results than the model.",
    "output_dir": "The folder of the output.",
    "output_intermediate_dir": "The folder that is synced while the script runs.",
    "resource_config": "What ``resourceconfig.json`` says.",
    "topology": "Which host is in which unit of capacity; None or empty where that is not said.",
    "user_entry_point": "The entry point, or None.",
}


class Environment(mapping.MappingMixin):
    """The job: a mapping of its properties, as in ``SM_TRAINING_ENV``.

    What is passed takes the place of what the job's configuration says.
    """

    def __init__(
        self,
        resource_config: Mapping[str, Any] | None = None,
        input_data_config: Mapping[str, Any] | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        values = _decoded("SM_TRAINING_ENV")
        if values is None:  # left out: it would have been too long for the kernel
            values = _from_single_variables()
            resource_config = resource_config or read_resource_config()
            input_data_config = input_data_config or read_input_data_config()
            hyperparameters = hyperparameters or read_hyperparameters()
        if hyperparameters:
            values.update(_of_hyperparameters(hyperparameters))
        if input_data_config:
            values["input_data_config"] = input_data_config
            values["channel_input_dirs"] = {name: channel_path(name) for name in input_data_config}
        if resource_config:
            values.update(_of_cluster(resource_config, values))
        self._values: dict[str, Any] = values

    def get_distribution_instance_groups_from_resource_config(self) -> Any:
        """Return ``distribution_instance_groups``."""
        return self._values["distribution_instance_groups"]

    def get_current_instance_group(self) -> Any:
        """Return ``current_instance_group``."""
        return self._values["current_instance_group"]

    def get_distribution_hosts(self) -> Any:
        """Return ``distribution_hosts``."""
        return self._values["distribution_hosts"]

    def get_current_instance_group_hosts(self) -> Any:
        """Return ``current_instance_group_hosts``."""
        return self._values["current_instance_group_hosts"]

    def get_instance_groups(self) -> Any:
        """Return ``instance_groups``."""
        return self._values["instance_groups"]

    def get_instance_groups_dict(self) -> Any:
        """Return ``instance_groups_dict``."""
        return self._values["instance_groups_dict"]

    def get_master_hostname(self) -> Any:
        """Return ``master_hostname``."""
        return self._values["master_hostname"]

    def sagemaker_s3_output(self) -> Any:
        """Return where intermediate output goes, or None."""
        return read_hyperparameters().get(params.S3_OUTPUT_LOCATION_PARAM)

    def to_cmd_args(self) -> list[str]:
        """Return the script's arguments; they follow changes of ``hyperparameters``."""
        given, own = _decoded("SM_HPS"), self._values["hyperparameters"]
        arguments = _decoded("SM_USER_ARGS")
        if arguments is not None and mapping.to_env_vars({"": given}) == mapping.to_env_vars(
            {"": own}
        ):
            return list(arguments)
        return mapping.to_cmd_args(own)

    def to_env_vars(self) -> dict[str, str]:
        """Return the script's ``SM_*`` variables; they follow changes of ``hyperparameters``."""
        own = self._values
        hyperparameters, channels = own["hyperparameters"], own["channel_input_dirs"]
        values = {name: own[name] for name in _EXPORTED}
        values.update(
            hps=hyperparameters,
            framework_params=own["additional_framework_parameters"],
            channels=sorted(channels),
            training_env=dict(self),
            user_args=self.to_cmd_args(),
        )
        if own["topology"]:
            values["topology"] = own["topology"]
        values.update({f"channel_{name}": path for name, path in channels.items()})
        values.update({f"hp_{name}": value for name, value in hyperparameters.items()})
        return mapping.to_env_vars(values)


_EXPORTED = sorted(
    set(_PROPERTIES)
    - {"additional_framework_parameters", "channel_input_dirs", "distribution_hosts"}
    - {"hyperparameters", "is_master", "is_modelparallel_enabled", "is_smddpmprun_installed"}
    - {"is_smddprun_installed", "job_name", "master_hostname", "topology"}
)
"""The properties that are variables under their own name."""


def _property(name: str, text: str) -> property:
    return property(lambda self: self._values[name], doc=text)


for _name, _text in _PROPERTIES.items():
    setattr(Environment, _name, _property(_name, _text))


def read_hyperparameters() -> dict[str, Any]:
    """Return all hyperparameters, decoded, the reserved ones among them."""
    found = {name: _of_json(value) for name, value in _file(hyperparameters_file_dir).items()}
    found.update(_decoded("SM_HPS") or {})
    found.update(_decoded("SM_FRAMEWORK_PARAMS") or {})
    return found


def read_resource_config() -> dict[str, Any]:
    """Return what ``resourceconfig.json`` says."""
    return _decoded("SM_RESOURCE_CONFIG") or _file(resource_config_file_dir)


def read_input_data_config() -> dict[str, Any]:
    """Return what ``inputdataconfig.json`` says."""
    return _decoded("SM_INPUT_DATA_CONFIG") or _file(input_data_config_file_dir)


def channel_path(channel: str) -> str:
    """Return the folder of a channel."""
    own = os.environ.get(f"SM_CHANNEL_{channel.upper()}")
    return own or os.path.join(input_dir, "data", channel)


def num_cpus() -> int:
    """Return the CPUs of this host, as ``SM_NUM_CPUS`` says."""
    return int(os.environ.get("SM_NUM_CPUS") or os.cpu_count() or 1)


def num_gpus() -> int:
    """Return the GPUs of this host, as ``SM_NUM_GPUS`` says."""
    return int(os.environ.get("SM_NUM_GPUS") or 0)


def num_neurons(instance_type: str = "") -> int:
    """Return the Neuron cores of this host, as ``SM_NUM_NEURONS`` says."""
    return int(os.environ.get("SM_NUM_NEURONS") or 0)


def validate_smddprun() -> bool:
    """Return whether ``smddprun`` is on the path."""
    return shutil.which("smddprun") is not None


def validate_smddpmprun() -> bool:
    """Return whether ``smddpmprun`` is on the path."""
    return shutil.which("smddpmprun") is not None


def write_env_vars(env_vars: Mapping[str, str] | None = None) -> None:
    """Set variables of this process and those that it starts, less what the kernel would refuse.

    ``PYTHONPATH``, which has the code folder already, stays as it is.
    """
    for name, value in (env_vars or {}).items():
        if len(os.fsencode(f"{name}={value}")) <= _LONGEST:
            os.environ[name] = value


def _decoded(name: str) -> Any:
    """Return what a variable of the runtime's says; None where there is none."""
    text = os.environ.get(name)
    return json.loads(text) if text else None


def _of_json(value: Any) -> Any:
    try:
        return json.loads(value)
    except (ValueError, TypeError):
        return value


def _file(path: str) -> dict[str, Any]:
    try:
        with open(path) as file:
            found: dict[str, Any] = json.load(file)
            return found
    except FileNotFoundError:
        return {}


def _from_single_variables() -> dict[str, Any]:
    """Return the properties that are no part of a configuration file."""
    found: dict[str, Any] = dict.fromkeys(_PROPERTIES)
    for name in ("framework_module", "module_dir", "module_name", "user_entry_point"):
        found[name] = os.environ.get(f"SM_{name.upper()}") or None
    for name in ("input_dir", "input_config_dir", "model_dir", "output_dir", "output_data_dir"):
        found[name] = globals()[name]
    found.update(
        output_intermediate_dir=output_intermediate_dir,
        job_name=os.environ.get(params.TRAINING_JOB_ENV) or os.environ.get(params.JOB_NAME_ENV),
        log_level=int(os.environ.get("SM_LOG_LEVEL") or 20),
        num_cpus=num_cpus(),
        num_gpus=num_gpus(),
        num_neurons=num_neurons(),
        distribution_instance_groups=_decoded("SM_DISTRIBUTION_INSTANCE_GROUPS") or [],
        is_smddprun_installed=validate_smddprun(),
        is_smddpmprun_installed=validate_smddpmprun(),
        hyperparameters={},
        additional_framework_parameters={},
        input_data_config={},
        channel_input_dirs={},
    )
    return found


def _of_hyperparameters(given: Mapping[str, Any]) -> dict[str, Any]:
    reserved, own = mapping.split_by_criteria(
        given, params.SAGEMAKER_HYPERPARAMETERS, params.SAGEMAKER_PREFIX
    )
    for_framework = {
        name: value
        for name, value in reserved.items()
        if name not in params.SAGEMAKER_HYPERPARAMETERS
    }
    return {"hyperparameters": own, "additional_framework_parameters": for_framework}


def _of_cluster(config: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    hosts, current = config["hosts"], config["current_host"]
    group = config.get("current_group_name", "homogeneousCluster")
    groups = {found["instance_group_name"]: found for found in config.get("instance_groups") or ()}
    chosen = known["distribution_instance_groups"]
    taking_part = [
        host for name, found in groups.items() if name in chosen for host in found["hosts"]
    ]
    leader = (taking_part or hosts)[0]
    return {
        "resource_config": config,
        "hosts": hosts,
        "current_host": current,
        "current_instance_type": config.get("current_instance_type", "local"),
        "current_instance_group": group,
        "current_instance_group_hosts": groups[group]["hosts"] if group in groups else [],
        "instance_groups": list(groups),
        "instance_groups_dict": groups,
        "is_hetero": len(groups) > 1,
        "network_interface_name": config.get("network_interface_name", "eth0"),
        "topology": config.get("topology"),
        "distribution_hosts": taking_part if groups else list(hosts),
        "master_hostname": leader,
        "is_master": current == leader,
    }

"""The values that travel through a job: read once, frozen, passed on.

Nothing here touches a file, the environment or a process.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any, TypeAlias

from sm_runtime.job.dataclass import dataclass, field


class _Below:
    """A path below the base folder of a job."""

    def __init__(self, *parts: str) -> None:
        self._parts = parts

    def __get__(self, paths: Paths, _: type[Paths]) -> str:
        return paths.under(*self._parts)


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders and files of a job below ``base`` (``/opt/ml``, or ``$SAGEMAKER_BASE_DIR``)."""

    base: str = "/opt/ml"
    code = _Below("code")
    """The folder of the user's code."""
    model = _Below("model")
    """The folder that becomes ``model.tar.gz``."""
    input = _Below("input")
    """The folder of the configuration and of the channels."""
    config = _Below("input", "config")
    """The folder of the JSON files that describe the job."""
    shell_variables = _Below("input", "sm_training.env")
    """The ``SM_*`` variables as lines that a shell can read."""
    data = _Below("input", "data")
    """The folder below which each channel has its folder or FIFOs."""
    pipe_state = _Below("pipe_state")
    """The folder in which readers of Pipe channels count epochs."""
    output = _Below("output")
    """The folder of ``success``, ``failure`` and ``data``."""
    output_data = _Below("output", "data")
    """The folder that becomes ``output.tar.gz``."""
    intermediate = _Below("output", "intermediate")
    """The folder that is synced while the job runs."""
    failure = _Below("output", "failure")
    """The file that tells the platform why a job failed."""
    success = _Below("output", "success")
    """The empty file that marks a job that succeeded."""
    checkpoints = _Below("checkpoints")
    """The default folder of checkpoints."""

    def under(self, *parts: str) -> str:
        """Return the path of ``parts`` below the base folder."""
        return posixpath.join(self.base, *parts)

    @property
    def measured(self) -> tuple[str, ...]:
        """What a job leaves of its measurements, and the report that is made of them."""
        names = ("job.json", "script.jsonl", "host.jsonl", "report.html")
        return tuple(self.under("output", "metrics", name) for name in names)


Json: TypeAlias = Any
"""A value as ``json.loads`` gives it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a channel's data comes from in a self-managed job (a ``DataSource`` of the request)."""

    uri: str
    """``s3://bucket/prefix``, ``file:///path``, or the ``DirectoryPath`` of a file system."""
    data_type: str = "S3Prefix"
    """``S3Prefix``, ``ManifestFile``, ``AugmentedManifestFile`` or ``FileSystem``."""
    attribute_names: tuple[str, ...] = ()
    instance_groups: tuple[str, ...] = ()
    compression: str = "None"
    """``None`` or ``Gzip``."""
    shuffle_seed: int | None = None
    read_only: bool = False
    """Whether the script must not write to it (``FileSystemAccessMode`` ``ro``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One named input of a job."""

    name: str
    path: str
    """Where the script looks for it; in Pipe mode the FIFOs are ``<path>_<epoch>``."""
    mode: str = "File"
    """``File``, ``Pipe`` or ``FastFile``."""
    distribution: str = "FullyReplicated"
    """``FullyReplicated`` or ``ShardedByS3Key``."""
    record_wrapper: str = "None"
    """``None`` or ``RecordIO``."""
    content_type: str | None = None
    source: Source | None = None
    """None in a managed job: the platform has placed the data."""

    def reaches(self, cluster: Cluster) -> bool:
        """Whether the current host gets the channel at all (``InstanceGroupNames``)."""
        groups = self.source.instance_groups if self.source else ()
        known = {group.name for group in cluster.groups}.intersection(groups)
        return not known or cluster.current_group in known


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceGroup:
    """A group of hosts of one instance type."""

    name: str
    instance_type: str
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The hosts of a job, as seen from one of them."""

    current_host: str
    hosts: tuple[str, ...]
    network_interface: str = "eth0"
    current_instance_type: str = "local"
    current_group: str = "homogeneousCluster"
    groups: tuple[InstanceGroup, ...] = ()
    distribution_groups: tuple[str, ...] = ()
    """The groups that take part in distributed training (contract 7.1)."""
    topology: Json = None
    first: str = ""
    """The host whose artifacts have the plain names, the same on all hosts; empty: the leader."""
    engine_job: str = ""
    """What the engine that has named the hosts calls the job; empty: none has."""

    @property
    def current_group_hosts(self) -> tuple[str, ...]:
        """The hosts of the current host's group; empty where there are no groups."""
        return next((g.hosts for g in self.groups if g.name == self.current_group), ())

    @property
    def distribution_hosts(self) -> tuple[str, ...]:
        """The hosts that take part in distributed training, the leader first."""
        if not self.groups:
            return self.hosts
        return tuple(h for g in self.groups if g.name in self.distribution_groups for h in g.hosts)

    @property
    def leader(self) -> str:
        """The host that leads: the first that takes part, else the first of all."""
        return (self.distribution_hosts or self.hosts)[0]

    @property
    def is_leader(self) -> bool:
        """Whether the current host leads."""
        return self.leader == self.current_host

    @property
    def is_first(self) -> bool:
        """Whether the current host's artifacts have the plain names."""
        return (self.first or self.leader) == self.current_host


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where artifacts go in a self-managed job (``OutputDataConfig`` of the request)."""

    uri: str
    """``s3://bucket/prefix`` or ``file:///path``; the job's name is appended."""
    kms_key: str | None = None
    compression: str = "GZIP"
    """``GZIP`` or ``NONE``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """A local folder that is kept in step with a remote one (checkpoints, TensorBoard)."""

    local_path: str
    uri: str
    optional: bool = False
    """Whether nobody asked for it: a job that does not use it runs without the remote one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric that is read off the script's output."""

    name: str
    regex: str


def _option(kind: str, default: Any) -> Any:
    """Declare an option: how it is read (``options``), and what it is where nothing says so."""
    return field(default=default, metadata={"kind": kind})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The runtime's own settings: ``SM_RUNTIME_<NAME>`` or ``sagemaker_runtime_<name>``.

    ``contract/hyperparameters.py`` says how each is read; docs/options.md tells users.
    """

    argument_style: frozenset[str] = _option("argument styles", frozenset())
    """Of ``flags`` (booleans as bare flags) and ``json`` (every value as its JSON text)."""
    args: tuple[str, ...] = _option("words", ())
    """Arguments that are passed verbatim after those of the hyperparameters."""
    code_preference: str = _option("submitted or image", "submitted")
    """``submitted``, or ``image``: what is in the code folder already is used, as the peers do."""
    code_max_bytes: int = _option("bytes", 10 * 2**30)
    """The most bytes that a code archive may unpack to."""
    install: bool = _option("flag", True)
    """Whether requirements are installed."""
    requirements: str = _option("text", "requirements.txt")
    """The requirements file, relative to the code folder."""
    allow_framework_change: bool = _option("flag", False)
    """Whether requirements may replace the framework that is installed."""
    stall_seconds: float = _option("seconds > 0", 30.0)
    """How long nothing may move on a connection to storage before it is given up for a new one."""
    allow_empty_channels: bool = _option("flag", False)
    """Whether a channel may match no objects at all."""
    link_channels: bool = _option("flag", False)
    """Whether a File channel from this machine is links to its files, not copies of them."""
    require_model: bool = _option("flag", False)
    """Whether a job with an empty model folder fails."""
    redirect_model_dir: bool | None = _option("flag", None)
    """Whether a ``model_dir`` in S3 is a synced local folder to the script; None: self-managed."""
    stop_grace_seconds: float | None = _option("seconds", None)
    """From a stop request to SIGKILL for the script; None: see ``Job.stop_grace_seconds``."""
    stop_timeout_seconds: float = _option("seconds", 120.0)
    """From a stop request to the end that the container engine makes (``docker stop -t``)."""
    stop_signal: str = _option("signal", "TERM")
    """The signal that the script gets for SIGTERM: ``INT``, ``USR1``, ..."""
    leftover_grace_seconds: float = _option("seconds", 1.0)
    """From the script's end to SIGKILL for the processes that it left behind."""
    silence_seconds: float | None = _option("seconds or 0: off", None)
    """Without a line of output for so long, the stacks are dumped; None: never."""
    report: bool = _option("flag", True)
    """Whether a self-managed job saves a report of itself beside its model."""
    collapse_repeats: bool = _option("flag", False)
    """Whether lines of the script's output that repeat are counted in the log."""
    host_metrics: bool = _option("flag", True)
    """Whether what the host gives to the job is sampled while the script runs."""
    silence_fails: bool = _option("flag", False)
    """Whether such a silence ends the job as well."""
    chown: tuple[int, int] | None = _option("user:group", None)
    """The user and the group that own everything the job leaves, as numbers."""
    unbuffered: bool = _option("flag", True)
    """Whether PYTHONUNBUFFERED=1 is set for the script where the user did not set it."""
    pipe_per_rank: bool = _option("flag", False)
    """Whether each local rank gets FIFOs of its own in Pipe mode, with its share of the records."""
    cluster_port: int = _option("port", 7117)
    """The TCP port at which the leader listens for the other hosts while a job starts."""
    peer_wait_seconds: float = _option("seconds", 300.0)
    """How long a host of a distributed job waits for the others to appear."""
    peer_silence_seconds: float = _option("seconds > 0", 20.0)
    """How long a host may be silent before it counts as lost."""
    launcher: tuple[str, ...] = _option("words", ())
    """What starts the script in place of the runtime, with placeholders; empty: nothing does."""
    parameter_server_layout: str = _option("master or chief", "master")
    """``master`` as tf.estimator scripts expect, or ``chief`` for ParameterServerStrategy."""
    worker_seconds: float = _option("seconds", 4.0)
    """How long workers may go on when the leader's script ended well, its parameter servers up."""
    parameter_server_evaluator: bool = _option("flag", False)
    """Whether the last host of a ``chief`` layout evaluates and does not train."""


BUILT_IN = "sagemaker_tensorflow_container.training:main"
"""What AWS's TensorFlow images name in their environment: the runtime does the same itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that is known about a job before anything is done."""

    paths: Paths
    cluster: Cluster
    name: str | None = None
    managed: bool = True
    hyperparameters: Mapping[str, Json] = field(default_factory=dict)
    """The user's, decoded (contract 2.1), without the reserved keys."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """The user's, as the text that stood in the file: ``1.10`` where the decoded value is 1.1."""
    reserved: Mapping[str, Json] = field(default_factory=dict)
    """The nine well-known reserved keys that are present, decoded (contract 2.3)."""
    framework_parameters: Mapping[str, Json] = field(default_factory=dict)
    """The other reserved keys, decoded: SM_FRAMEWORK_PARAMS."""
    hyperparameter_config: Mapping[str, Json] = field(default_factory=dict)
    """All of them, as ``hyperparameters.json`` has them or would have them."""
    resource_config: Mapping[str, Json] = field(default_factory=dict)
    input_data_config: Mapping[str, Json] = field(default_factory=dict)
    channels: tuple[Channel, ...] = ()
    program: str | None = None
    """The entry point, relative to the code folder, or a module."""
    entry_point: tuple[str, ...] = ()
    """The request's ``ContainerEntrypoint``, run in place of a program of the code folder."""
    submit_directory: str | None = None
    """Where the code is; None: the code folder."""
    region: str = ""
    log_level: int = 20
    training_module: str | None = None
    """``module:function``, as it is given; see ``hook`` (contract 4.6)."""
    output: Output | None = None
    checkpoints: Sync | None = None
    tensorboard: Sync | None = None
    model_dir: Sync | None = None
    """Set where the script's ``model_dir`` is a local folder in the place of an S3 one."""
    metrics: tuple[Metric, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """The request's ``Environment``: exported to the script."""
    referenced: tuple[str, ...] = ()
    """Values that were read from files that hyperparameters and variables refer to: secrets."""
    max_runtime_seconds: float | None = None
    signalled_whole: bool = False
    """Whether what asks this job to stop signals all of its processes, and not the first alone."""
    options: Options = Options()

    @property
    def hook(self) -> str | None:
        """``module:function`` of the framework that runs the script; None: the runtime does."""
        return None if self.training_module == BUILT_IN else self.training_module

    @property
    def decides_itself(self) -> bool:
        """Whether what is run, and not the hyperparameters, decides on distributed training."""
        return bool(self.hook or self.entry_point)

    @property
    def stop_grace_seconds(self) -> float:
        """From a stop request to SIGKILL for the script, in seconds: time to save is left."""
        if self.options.stop_grace_seconds is not None:
            return self.options.stop_grace_seconds
        whole = self.options.stop_timeout_seconds
        return max(whole - 10, whole / 2) if self.managed else 0.75 * whole

    @property
    def stop_seconds(self) -> float:
        """From a stop request to when all has to be saved, a little before the engine's SIGKILL.

        A script that is given more than the engine's time has an engine that gives more.
        """
        whole, grace = self.options.stop_timeout_seconds, self.stop_grace_seconds
        if grace >= whole:
            whole = grace / 0.75
        return whole - min(3.0, whole / 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What this host gives to a job."""

    cpus: int
    gpus: int = 0
    neurons: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """How the job's program is run plainly, without what a launcher puts before it."""

    program: tuple[str, ...]
    """The words that run it: ``python train.py``, ``python -m pkg.mod``, ``./run.sh``."""
    arguments: tuple[str, ...] = ()
    """The words that it is given."""

    @property
    def argv(self) -> tuple[str, ...]:
        """The argument vector."""
        return (*self.program, *self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A process to start: never a shell string, always an argument vector.

    Strings hold undecodable bytes as surrogates (``os.fsdecode``).
    """

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    name: str = "the script"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the script ended."""

    status: int
    """A shell status: the script's own, or 128 + the signal that ended it."""
    signal: int | None = None
    """The signal that ended it, if one did."""
    stopped_by: str | None = None
    """Why it was asked to stop, if it was: ``SIGTERM``, ``MaxRuntimeInSeconds (60 s)``, ..."""
    killed: bool = False
    """Whether it had to be killed, the grace over."""
    oom_kills: int = 0
    """How many processes of the container the kernel ended for want of memory."""
    memory_limit_bytes: int | None = None
    shared_memory_bytes: int | None = None
    """The size of ``/dev/shm``."""
    shared_memory_free_bytes: int | None = None
    seconds: float = 0.0
    tail: bytes = b""
    """The last bytes of its standard error."""
    stdout_tail: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether the script did what it should: status 0, also after a stop request."""
        return self.status == 0

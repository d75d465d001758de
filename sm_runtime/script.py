"""How the user's script is started, and run where there is one process on one host.

``SingleHost`` is what a ``cluster.session.Session`` is where there is nobody to agree with.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sm_runtime import programs
from sm_runtime.code import fetch
from sm_runtime.contract import config_files, environment
from sm_runtime.job.errors import ConfigError
from sm_runtime.job.model import Command, Ended, Entry, Job
from sm_runtime.job.secrets import Mask, spellings
from sm_runtime.processes import hardware
from sm_runtime.processes.stop import StopPolicy
from sm_runtime.processes.supervisor import Supervisor
from sm_runtime.processes.workload import SingleProcess

if TYPE_CHECKING:
    from sm_runtime.job.failure import Failure

log = logging.getLogger(__name__)

INJECTED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inject")
"""The folder of the ``sitecustomize`` that lets SIGUSR1 dump the stacks of Python processes."""
Launcher = Callable[[Entry], tuple[str, ...]]
"""Returns the argument vector of what starts a script."""


def command(
    job: Job,
    code: fetch.Code,
    variables: Mapping[str, str],
    installed: Mapping[str, str],
    launcher: Launcher,
    mask: Mask,
) -> Command:
    """Return how the script is started.

    ``variables`` are the runtime's own, ``installed`` those that what was installed needs.

    Raises ConfigError for an environment that the kernel would refuse, or without a program.
    """
    if problems := environment.oversized(job):
        raise ConfigError(problems)
    argv, extra = _entry(job, code, variables, launcher)
    inherited = {**variables, **installed, **extra}
    inherited |= environment.tensorflow_variables(job, inherited)
    devices = hardware.of_job(job, inherited)
    search_path = (*code.search_path, INJECTED)
    env, warnings = environment.process_environment(job, devices, inherited, search_path)
    for warning in warnings:
        log.warning("%s", warning)
    folder = _working_folder(job, code)
    if "SM_SOURCE_DIR" in env:
        env["SM_SOURCE_DIR"] = code.directory
    _write_for_shells(job, env)
    # Word by word: the quotes that a shell needs would hide a secret from the mask.
    shown = shlex.join(map(mask, argv))
    log.info("Invoking user script in %s: %s", folder, shown)
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s", _as_the_toolkit(env, shown, mask))
    return Command(argv=argv, cwd=folder, env=env)


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "'\"'\"'") + "'"


def _as_the_toolkit(env: Mapping[str, str], command: str, mask: Mask) -> str:
    """Return the block that SageMaker's training toolkit logs before the script; tools look for it.

    Secrets are masked here: in a text of many lines a mask may take one's end for another's.
    """
    variables = "\n".join(mask(f"{name}={value}") for name, value in env.items())
    training = json.loads(env.get("SM_TRAINING_ENV", "{}"))
    return (
        "Invoking user script\n\n"
        f"Training Env:\n\n{mask(json.dumps(training, indent=4))}\n\n"
        f"Environment variables:\n\n{variables}\n\n"
        f"Invoking script with the following command:\n\n{command}\n\n"
    )


def _write_for_shells(job: Job, env: Mapping[str, str]) -> None:
    """Write the ``SM_*`` variables as the SDK 3's drivers do, for shell scripts to read.

    But for those that hold what was read by reference: it is to be in no other file.
    """
    path = job.paths.shell_variables
    hidden = [text for secret in job.referenced for text in spellings(secret)]
    lines = [
        f"export {name}={_quoted(value)}\n"
        for name, value in env.items()
        if name.startswith("SM_")
        and name.isidentifier()
        and not name.startswith("SM_RUNTIME_")
        and not any(text in value for text in hidden)
    ]
    try:
        with open(
            os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w"
        ) as file:
            file.writelines(lines)
        os.replace(path + ".part", path)
    except (OSError, ValueError) as error:
        log.debug("%s is not written: %s", path, error)


def _entry(
    job: Job, code: fetch.Code, variables: Mapping[str, str], launcher: Launcher
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the argv to start, and the variables by which a framework finds the script."""
    hook = programs.start(sys.executable, job.hook) if job.hook else ()
    if hook and job.program is None:
        return hook, {}
    arguments = environment.arguments(job)
    entry = fetch.entry_command(job, code, arguments, sys.executable, variables)
    if hook:
        return hook, {"SM_RUNTIME_COMMAND": json.dumps(entry.argv)}
    if job.entry_point:
        return entry.argv, {config_files.INSIDE: job.paths.base}
    return launcher(entry), {}


def _working_folder(job: Job, code: fetch.Code) -> str:
    """Return where the script runs.

    That is the code folder; for an entry point of the request where the image says, as on the
    platform, unless the image says nothing or the job brings code.
    """
    if job.entry_point and not job.submit_directory and (own := _own_folder()) != "/":
        return own
    return code.directory if os.path.isdir(code.directory) else "/"


def _own_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return "/"


class SingleHost:
    """The host of a job that is not distributed; ``host`` is its name, once that is known."""

    is_distributed, kind = False, "plain"
    processes_per_host = 1

    def __init__(self, supervisor: Supervisor, mask: Mask, host: str = "") -> None:
        self._supervisor, self._mask, self._host = supervisor, mask, host
        self.hosts = (host,)
        self.started = False
        """Whether the script has begun, so that there may be something to save."""

    def launcher(self, entry: Entry) -> tuple[str, ...]:
        """Return the entry's argument vector: nothing else starts it."""
        return entry.argv

    def wait_for_peers(self) -> None:
        """Return at once."""

    def run(
        self, script: Command, policy: StopPolicy, keep_stacks: Callable[[bytes], None]
    ) -> Failure | None:
        """Run the script to its end; return why it failed, if it did."""
        self.started = True
        workload = SingleProcess(script, policy)
        [ended] = self._supervisor.run(workload, keep_stacks=keep_stacks).values()
        if not ended.ok:
            return self._failure(ended, script)
        if ended.stopped_by:
            log.info("the script ended well after it was stopped by %s", ended.stopped_by)
        return None

    def fail(self, reason: str) -> None:
        """Have the script stop, from any thread: its data is not all that it takes it for."""
        self._supervisor.ask(reason)

    def report_failure(self, failure: Failure) -> Failure:
        """Return the failure: nobody else has another."""
        return failure

    def leave(self, failure: Failure | None) -> Failure | None:
        """Return the failure, if there is one."""
        return failure

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def _failure(self, ended: Ended, command: Command) -> Failure:
        """Return the failure that the script's end is."""
        from sm_runtime.job import failure  # only a job that fails pays for it

        try:
            return failure.of_script(ended, command, self._host, self._mask)
        except Exception as error:  # whatever the script wrote, its status stands
            log.error("the reason of the failure cannot be determined", exc_info=error)
            message = f"the script ended with exit code {ended.status}"
            name = "ExecuteUserScriptError"
            return failure.Failure(
                name=name, message=message, phase="train", status=ended.status, host=self._host
            )

"""Looks at a job without running it: what its script would get, and what is wrong with it."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping

from sm_runtime import artifacts, channels, environ, hardware, source, sync
from sm_runtime.configure import configure
from sm_runtime.errors import ConfigError, JobError
from sm_runtime.launch import distribution
from sm_runtime.model import Job
from sm_runtime.redact import Mask

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def show(variables: Mapping[str, str], mask: Mask, *, as_json: bool, secrets: bool) -> int:
    """Print the variables and the arguments of the job; return the exit status."""
    try:
        job = configure(variables, mask)
    except ConfigError as error:
        return _complain(error.problems, mask)
    hide = str if secrets else mask
    exported = environ.variables(job, hardware.count({**variables, **job.environment}))
    exported |= environ.twins(exported)[0]
    exported = {name: hide(value) for name, value in exported.items()}
    arguments = [hide(argument) for argument in environ.arguments(job)]
    command = _command(job)
    if as_json:
        found = [hide(word) for word in command] if command else None
        document = {"environment": exported, "arguments": arguments, "command": found}
        print(json.dumps(document, indent=1))
        return 0
    for name, value in exported.items():
        if _IDENTIFIER.fullmatch(name):
            print(f"export {name}={shlex.quote(value)}")
        else:  # a shell cannot hold such a name: its legal twin is exported as well
            print(f"# {json.dumps(name)} = {json.dumps(value)}")
    print(shlex.join(["set", "--", *arguments]))
    return 0


def launch(variables: Mapping[str, str], mask: Mask, *, secrets: bool) -> int:
    """Print what each host would start, and why each option is there; return the exit status."""
    from sm_runtime import launching

    try:
        job = configure(variables, mask)
        devices = hardware.count({**variables, **job.environment})
        arguments = environ.arguments(job)
        # Where the code has to be fetched, nobody knows yet how its program is run.
        program = _command(job) or (job.program or "the program", *arguments)
        lines = launching.lines(
            job, devices, program, arguments, {**variables, **job.environment}, sys.executable
        )
    except ConfigError as error:
        return _complain(error.problems, mask)
    hide = str if secrets else mask
    for line in lines:
        print(hide(line).encode("utf-8", "backslashreplace").decode())
    return 0


def check(variables: Mapping[str, str], mask: Mask) -> int:
    """Print every problem of the job; return 1 if there is any."""
    try:
        job = configure(variables, mask)
    except ConfigError as error:
        return _complain(error.problems, mask)
    found = [*_refused(artifacts.check, job, variables), *_refused(sync.check, job, variables)]
    found += [*distribution.problems(job), *environ.oversized(job)]
    found += [*source.problems(job), *channels.problems(job)]
    return _complain(found, mask)


def _refused(
    check: Callable[[Job, Mapping[str, str]], None], job: Job, variables: Mapping[str, str]
) -> tuple[str, ...]:
    try:
        check(job, variables)
    except ConfigError as error:
        return error.problems
    return ()


def _command(job: Job) -> tuple[str, ...] | None:
    """Return the script's argv; None where the code has to be fetched to know it."""
    try:
        code = source.in_place(job)
        if code is None:
            return None
        return source.entry_command(job, code, environ.arguments(job), sys.executable)
    except JobError:
        return None


def _complain(problems: list[str] | tuple[str, ...], mask: Mask) -> int:
    for problem in problems:
        print(mask(problem).encode("utf-8", "backslashreplace").decode())
    if not problems:
        print("no problem found")
    return 1 if problems else 0

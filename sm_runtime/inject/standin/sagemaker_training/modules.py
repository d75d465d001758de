"""The user's code as modules: run, imported, and installed with pip."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from types import ModuleType
from typing import Any, Mapping, Sequence

from . import environment, errors, files, logging_config, process

DEFAULT_MODULE_NAME = "default_user_module_name"
CA_REPOSITORY_ARN_ENV = "CA_REPOSITORY_ARN"
_PIP = ("-m", "pip", "install")


def exists(name: str) -> bool:
    """Return whether a module can be imported; it is then."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def has_requirements(path: str) -> bool:
    """Return whether a folder has a ``requirements.txt``."""
    return os.path.exists(os.path.join(path, "requirements.txt"))


def prepare(path: str, name: str) -> None:
    """Do nothing: a module is found in the code folder without a ``setup.py``."""


def install(path: str, capture_error: bool = False) -> None:
    """Install the package in ``path`` with pip.

    Raises InstallModuleError.
    """
    more = ["-r", "requirements.txt"] if has_requirements(path) else []
    command = [process.python_executable(), *_PIP, ".", *more]
    process.check_error(command, errors.InstallModuleError, 1, path, capture_error)


def install_requirements(path: str, capture_error: bool = False) -> None:
    """Install what the ``requirements.txt`` in ``path`` asks for with pip.

    Raises InstallRequirementsError.
    """
    command = [process.python_executable(), *_PIP, "-r", "requirements.txt"]
    process.check_error(command, errors.InstallRequirementsError, 1, path, capture_error)


def import_module(uri: str, name: str = DEFAULT_MODULE_NAME, cache: Any = None) -> ModuleType:
    """Return a module of the user's.

    Raises ImportModuleError.
    """
    files.download_and_extract(uri, environment.code_dir)
    if environment.code_dir not in sys.path:
        sys.path.insert(0, environment.code_dir)
    try:
        return importlib.reload(importlib.import_module(name))
    except Exception as error:
        raise errors.ImportModuleError(error).with_traceback(error.__traceback__) from error


# -- what only sagemaker_containers has --------------------------------------------------------


def s3_download(url: str, dst: str) -> None:
    """Do what ``files.s3_download`` does."""
    files.s3_download(url, dst)


def download_and_install(uri: str, name: str = DEFAULT_MODULE_NAME, cache: bool = True) -> None:
    """Install a module of the user's, unless it is there already."""
    if not (cache and exists(name)):
        with files.tmpdir() as folder:
            path = os.path.join(folder, "module_dir")
            files.download_and_extract(uri, path)
            install(path)


def run(
    module_name: str,
    args: Sequence[str] | None = None,
    env_vars: Mapping[str, str] | None = None,
    wait: bool = True,
    capture_error: bool = False,
) -> subprocess.Popen[bytes]:
    """Run a module of the user's as a script; all else is as in ``entry_point.run``."""
    command = [process.python_executable(), "-m", module_name, *(args or ())]
    logging_config.log_script_invocation(command)
    if not wait:
        return process.start(command, None, capture_error).process
    return process.check_error(command, errors.ExecuteUserScriptError, 1, None, capture_error)


def run_module(
    uri: str,
    args: Sequence[str],
    env_vars: Mapping[str, str] | None = None,
    name: str = DEFAULT_MODULE_NAME,
    cache: Any = None,
    wait: bool = True,
    capture_error: bool = False,
) -> subprocess.Popen[bytes]:
    """Run a module of the code folder as a script; all else is as in ``entry_point.run``."""
    files.download_and_extract(uri, environment.code_dir)
    environment.write_env_vars(env_vars)
    return run(name, args, env_vars, wait, capture_error)

"""Runs the user's script."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, Mapping, Sequence

from . import environment, files, modules, process
from . import runner as runners


def run(
    uri: str,
    user_entry_point: str,
    args: Sequence[str],
    env_vars: Mapping[str, str] | None = None,
    wait: bool = True,
    capture_error: bool = False,
    runner_type: Any = runners.ProcessRunnerType,
    extra_opts: Any = None,
    runner: Any = None,
) -> subprocess.Popen[bytes]:
    """Run a script of the code folder with these arguments and, besides ours, these variables.

    The runtime has fetched the code and installed what it needs already: ``uri`` counts only where
    the code folder is empty. With ``capture_error`` the exception holds what the script has written
    last to standard error, which is in the log as ever. Stop signals reach the script by
    themselves; this process waits for it to end. ``runner`` is what ``sagemaker_containers`` calls
    ``runner_type``.

    Raises ExecuteUserScriptError for a script that fails, unless ``wait`` is false.
    """
    started = runners.get(runner or runner_type, user_entry_point, args, env_vars, extra_opts)
    folder = environment.code_dir
    is_placed = os.path.isdir(folder) and os.listdir(folder)
    files.download_and_extract(uri, folder)
    if not is_placed:
        install(user_entry_point, folder, capture_error)
    environment.write_env_vars(env_vars)
    return started.run(wait, capture_error)


def install(name: str, path: str = environment.code_dir, capture_error: bool = False) -> None:
    """Install what the code in ``path`` needs, and have this process find its modules."""
    if path not in sys.path:
        sys.path.insert(0, path)
    if os.path.isfile(os.path.join(path, "setup.py")) and not name.endswith(".sh"):
        modules.install(path, capture_error)
    elif name.endswith(".py") and modules.has_requirements(path):
        modules.install_requirements(path, capture_error)
    elif not name.endswith(".py"):
        process.make_executable(os.path.join(path, name))

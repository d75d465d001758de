"""The user's own code for a model: where it is, what is wrong with it, and what it needs installed.

All of it comes before a worker is started, and without a framework: a handler that does not compile
is found within a second, before pip has run.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from sm_runtime.job import location
from sm_runtime.job.errors import CodeError, ConfigError, InstallError
from sm_runtime.job.model import Cluster, Job, Options, Paths
from sm_runtime.job.text import Tail, some

log = logging.getLogger(__name__)

PROGRAM = "inference.py"
"""The file with the handlers, where SAGEMAKER_PROGRAM names no other."""
OF_TENSORFLOW = ("handler", "input_handler", "output_handler")
"""The functions that AWS's TensorFlow image looks for."""
OF_TOOLKIT = ("model_fn", "input_fn", "predict_fn", "output_fn", "transform_fn")
"""The functions that SageMaker's inference toolkit looks for."""
AROUND = ("pre_model_fn", "model_warmup_fn")
"""The toolkit's functions before and after a model is loaded."""
HANDLERS = (*OF_TENSORFLOW, *OF_TOOLKIT, *AROUND)
_SHOWN = 8
_STOPPED_SECONDS = 5.0
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCode:
    """The user's code, in the folder where it runs."""

    directory: str
    program: str = ""
    """The absolute path of the file with the handlers; empty: there is none."""
    requirements: tuple[str, ...] = ()
    """The folders that hold a requirements file."""

    @property
    def search_path(self) -> tuple[str, ...]:
        """The folders that come first on the path of a worker."""
        folders = (os.path.dirname(self.program), self.directory, _lib(self.directory))
        return tuple(dict.fromkeys(folder for folder in folders if folder))


def find(
    model_dir: str,
    environ: Mapping[str, str],
    paths: Paths,
    *,
    program: str | None = None,
    submit_directory: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> OwnCode | None:
    """Return the code that belongs to the model in ``model_dir``; None: there is none.

    ``program`` and ``submit_directory`` are SAGEMAKER_PROGRAM and SAGEMAKER_SUBMIT_DIRECTORY; an
    archive is unpacked. Raises CodeError where the code cannot be fetched or lies where nothing
    would look for it.
    """
    options = _options(environ)
    folders = [os.path.join(model_dir, "code")]
    if submit_directory:
        job = _job(paths, options, submit_directory=submit_directory)
        folders.insert(0, _submitted(job, environ, stopped))
    folders = list(dict.fromkeys(os.path.abspath(folder) for folder in folders))
    # Several models may share code; and what training has left is a model's if it is its program.
    shared = (os.path.join(paths.model, "code"), paths.code)
    for folder in dict.fromkeys((*folders, *shared)):
        if file := _program(folder, program or PROGRAM):
            found = _requirements(folder, options)
            return OwnCode(directory=folder, program=file, requirements=found)
    _refuse_misplaced(model_dir, folders, program)
    for folder in folders:
        _warn_of_scripts(folder)
        if found := _requirements(folder, options):
            return OwnCode(directory=folder, requirements=found)
    return None


def check(code: OwnCode) -> None:
    """Raise CodeError where the program, or what it imports from its folders, does not compile.

    Also where it has none of the functions that are looked for. Nothing is run.
    """
    if not code.program:
        return
    tree = _compiled(code.program)
    _check_imports(code, tree, {code.program})
    names = _names(tree)
    if names is not None and not names.intersection(HANDLERS):
        raise CodeError(no_handler(code.program, names))


def loads(code: OwnCode) -> bool:
    """Return whether the code loads its model itself, so that no other is looked for."""
    return bool(code.program) and "model_fn" in (_names(_compiled(code.program)) or ())


def first_imports(code: OwnCode) -> Iterator[str]:
    """Yield the top-level modules that the program imports before anything else is run.

    It ends with the first statement that is no import, and with a module of the code's own folders.
    """
    for node in _compiled(code.program).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # the docstring
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        else:
            return
        for name in (name.partition(".")[0] for name in names):
            places = (os.path.join(folder, name) for folder in code.search_path)
            if any(os.path.isdir(place) or os.path.isfile(f"{place}.py") for place in places):
                return
            yield name


def install(
    code: OwnCode,
    environ: Mapping[str, str],
    paths: Paths,
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, str]:
    """Install what the code asks for; return the variables by which a worker finds it.

    pip is not started where all is there. Raises InstallError, whose text is pip's own reason.
    """
    from sm_runtime.code.fetch import Code
    from sm_runtime.install import install as install_here

    job = _job(paths, _options(environ), program=code.program)
    exported: dict[str, str] = {}
    for folder in code.requirements:
        try:
            done = install_here(
                job,
                Code(directory=folder, search_path=(folder,)),
                {**environ, **exported},
                sys.executable,
                partial(_run, stopped=stopped),
                stopped,
                package=False,
            )
        except InstallError as error:
            joint = "/" if str(error).startswith(job.options.requirements) else ": "
            raise InstallError(f"{folder}{joint}{error}") from error
        log.info("%s: %s", folder, done.summary)
        exported |= done.environ
    return exported


def no_handler(file: str, names: set[str]) -> str:
    """Return the sentence for a module whose functions ``names`` are no handlers."""
    near = {name: handler for name in sorted(names) if (handler := meant(name))}
    text = f"{file} defines none of the functions that are looked for: {', '.join(HANDLERS)}"
    if near:
        return text + "; rename " + ", ".join(f"{k} to {v}" for k, v in near.items())
    public = sorted(name for name in names if not name.startswith("_"))
    return text + (f"; it defines {some(public, _SHOWN)}" if public else "; it defines nothing")


def meant(name: str) -> str | None:
    """Return the handler whose name was probably meant by ``name``, unless it is one."""
    import difflib

    if name in HANDLERS:
        return None
    plain = name.lower().strip("_")
    close = difflib.get_close_matches(plain, HANDLERS, n=1, cutoff=0.8)
    short = {handler.removesuffix("_fn"): handler for handler in OF_TOOLKIT[1:]}
    return close[0] if close else short.get(plain)


def _options(environ: Mapping[str, str]) -> Options:
    from sm_runtime.contract.hyperparameters import read_options
    from sm_runtime.contract.reader import Findings

    findings = Findings()
    options = read_options(environ, {}, None, findings)
    if findings.problems:
        raise ConfigError(findings.problems)
    return options


def _job(
    paths: Paths, options: Options, *, program: str | None = None, submit_directory: str = ""
) -> Job:
    """Return what the rooms that fetch and install know a job by."""
    return Job(
        paths=paths,
        cluster=Cluster(current_host="localhost", hosts=("localhost",)),
        program=program,
        submit_directory=submit_directory or None,
        options=options,
    )


def _submitted(job: Job, environ: Mapping[str, str], stopped: Callable[[], bool]) -> str:
    """Return the folder of the submitted code: a folder is used in its place."""
    from sm_runtime.code.fetch import fetch

    uri = job.submit_directory or ""
    try:
        path = location.parse(uri).path if location.is_file(uri) else uri
    except ValueError as error:
        raise CodeError(f"SAGEMAKER_SUBMIT_DIRECTORY: {error}") from None
    if not location.is_s3(uri) and (os.path.isdir(path) or path == job.paths.code):
        return path
    try:
        found = fetch(job, environ, stopped)
    except CodeError as error:
        text = str(error).replace("sagemaker_submit_directory", "SAGEMAKER_SUBMIT_DIRECTORY")
        raise CodeError(text) from error
    for warning in found.warnings:
        log.warning("%s", warning)
    return found.directory


def _program(folder: str, program: str) -> str:
    """Return the path of the program in a folder, which may be named as a module is; or empty."""
    for name in (program, f"{program}.py"):
        path = os.path.normpath(os.path.join(folder, name))
        if os.path.isfile(path):
            return path
    return ""


def _refuse_misplaced(model_dir: str, folders: list[str], program: str | None) -> None:
    code = os.path.join(model_dir, "code")
    if found := next(_elsewhere(model_dir, os.path.basename(program or PROGRAM)), None):
        remedy = f"move it to {os.path.join(code, program or PROGRAM)}"
        if found.startswith(code + "/"):
            remedy += f", or set SAGEMAKER_PROGRAM={os.path.relpath(found, code)}"
        raise CodeError(
            f"{found} would not be used: {remedy} (in model.tar.gz the code belongs into the folder"
            " code at the top)"
        )
    if program:
        scripts = [f for folder in folders for f in _scripts(folder)]
        there = f"there are {some(scripts, _SHOWN)}" if scripts else "there is no Python file"
        raise CodeError(
            f"SAGEMAKER_PROGRAM={program} is not in {' or '.join(folders)}, {there}: add it, or"
            " unset the variable to serve the model without own code"
        )


def _elsewhere(root: str, name: str) -> Iterator[str]:
    """Yield the files of that name below ``root``."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__pycache__")
        if name in files:
            yield os.path.join(folder, name)


def _scripts(folder: str) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [os.path.join(folder, name) for name in names if name.endswith(".py")]


def _warn_of_scripts(folder: str) -> None:
    if scripts := _scripts(folder):
        log.warning(
            "%s: not used, as there is no %s beside and SAGEMAKER_PROGRAM is not set",
            some(scripts, _SHOWN),
            PROGRAM,
        )


def _lib(folder: str) -> str:
    lib = os.path.join(folder, "lib")
    return lib if os.path.isdir(lib) else ""


def _requirements(folder: str, options: Options) -> tuple[str, ...]:
    folders = (folder, os.path.join(folder, "lib"))
    return tuple(f for f in folders if os.path.isfile(os.path.join(f, options.requirements)))


def _compiled(path: str) -> ast.Module:
    """Return the syntax tree of a file. Raises CodeError where Python would refuse it."""
    try:
        with open(path, "rb") as file:
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, path, "exec", dont_inherit=True)
            return ast.parse(source, path)
    except SyntaxError as error:
        text = f": {' '.join(error.text.split())}" if error.text else ""
        where = f"{path}, line {error.lineno}" if error.lineno else path
        raise CodeError(f"{where}: {type(error).__name__}: {error.msg}{text}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL
        raise CodeError(f"{path} cannot be read as Python: {error}") from error


def _check_imports(code: OwnCode, tree: ast.Module, seen: set[str]) -> None:
    """Compile what is imported, at the top level of a module, from the folders of the code."""
    for name in _imported(tree):
        for folder in code.search_path:
            base = os.path.join(folder, *name.split("."))
            path = next(filter(os.path.isfile, (f"{base}/__init__.py", f"{base}.py")), None)
            if path is None:
                continue
            if path not in seen:
                seen.add(path)
                _check_imports(code, _compiled(path), seen)
            break


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _names(tree: ast.Module) -> set[str] | None:
    """Return the names that a module binds; None where that is known only when it runs."""
    found: set[str] = set()
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            todo += node.decorator_list
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.asname or alias.name.partition(".")[0] for alias in node.names]
            if "*" in names:
                return None
            found.update(names)
        elif isinstance(node, ast.Name):
            if node.id in ("globals", "vars", "exec", "setattr"):
                return None
            if isinstance(node.ctx, ast.Store):
                found.add(node.id)
        todo += ast.iter_child_nodes(node)
    return found


def _run(
    argv: tuple[str, ...], env: Mapping[str, str], folder: str, stopped: Callable[[], bool]
) -> tuple[int, bytes]:
    """Run pip, as for a job: the log gets what matters of its output, whose end is returned.

    The first of what is returned is its status, as a shell has it.
    """
    import selectors

    tail = Tail(_TAIL_BYTES)
    process = subprocess.Popen(
        argv,
        env=env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout, selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not stopped():
            if not selector.select(0.25):
                continue
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                break
            tail.add(data)
        else:
            process.terminate()
    try:
        status = process.wait(_STOPPED_SECONDS if stopped() else None)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # what it has started, such as a build
    return (status if status >= 0 else 128 - status), tail.read()

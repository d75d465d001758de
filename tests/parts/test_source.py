"""Where the user's code comes from, which one wins, and that it runs as it was given."""

from __future__ import annotations

import io
import json
import logging
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sm_runtime.code import fetch as source
from sm_runtime.code.fetch import Code, entry_command, problems
from sm_runtime.job.errors import CodeError, ConfigError, JobError
from sm_runtime.job.model import Cluster, Job, Options, Paths

DUMP = "import json, os, sys\nprint(json.dumps([os.getcwd(), [ascii(a) for a in sys.argv[1:]]]))\n"
HOSTILE = (
    "--key", "a b", "", "it's \"x\"", "$(touch PWN)", "`touch PWN`", "; touch PWN", "a\nb", "*",
    "\\", "-n", "ü", os.fsdecode(b"\xe9\xff"), 'q"',
)  # fmt: skip


def job(base: Path, submitted: str | None = None, **values: Any) -> Job:
    cluster = Cluster(current_host="algo-1", hosts=("algo-1",))
    return Job(
        paths=Paths(str(base)),
        cluster=cluster,
        submit_directory=submitted,
        **{"program": "train.py", **values},
    )


def fetch(job: Job) -> Code:
    return source.fetch(job, {})


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    root.mkdir(parents=True, exist_ok=True)
    return root


def tarball(path: Path, files: dict[str, str], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content.encode())
            archive.addfile(info, io.BytesIO(content.encode()))
    return path


def files(root: str | Path) -> dict[str, str]:
    return {
        str(p.relative_to(root)): p.read_text()
        for p in sorted(Path(root).rglob("*"))
        if p.is_file()
    }


def started(job: Job, code: Code, arguments: tuple[str, ...] = ()) -> Any:
    argv = entry_command(job, code, arguments, sys.executable).argv
    env = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ":".join(code.search_path)}
    result = subprocess.run(argv, cwd=code.directory, env=env, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.decode()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "ml", {})


# --- where it comes from


@pytest.mark.parametrize("submitted", [None, "{base}/code", "{base}/code/", "file://{base}/code"])
def test_the_code_folder_is_used_where_it_is_and_never_altered(
    base: Path, submitted: str | None
) -> None:
    write(base / "code", {"train.py": DUMP, ".DS_Store": "x"})
    before = os.stat(base / "code")
    code = fetch(job(base, submitted and submitted.format(base=base)))
    assert code == Code(directory=f"{base}/code", search_path=(f"{base}/code",))
    assert os.stat(base / "code") == before
    assert os.listdir(base) == ["code"]


def test_a_missing_code_folder_is_not_created_and_the_entry_check_says_so(base: Path) -> None:
    wanted = job(base)
    code = fetch(wanted)
    assert os.listdir(base) == []
    with pytest.raises(CodeError, match="which does not exist"):
        entry_command(wanted, code, (), sys.executable)


@pytest.mark.parametrize("program", ["/bin/ls", "-m pip"])
def test_a_program_of_the_image_needs_no_code_folder(base: Path, program: str) -> None:
    wanted = job(base, program=program)
    assert started(wanted, fetch(wanted))


SUBMITTED = {"train.py": DUMP, "lib/part.py": "X = 1\n"}


def folder(root: Path) -> str:
    return str(write(root / "my code", dict(SUBMITTED)))


def folder_uri(root: Path) -> str:
    return "file://" + folder(root)


def escaped_uri(root: Path) -> str:
    return "file://" + folder(root).replace(" ", "%20")


def tar_gz(root: Path) -> str:
    return str(tarball(root / "sourcedir.tar.gz", SUBMITTED))


def tar_uri(root: Path) -> str:
    return f"file://{tarball(root / 'sourcedir.tar.gz', SUBMITTED)}"


def plain_tar_named_gz(root: Path) -> str:
    return str(tarball(root / "sourcedir.tar.gz", SUBMITTED, "w"))


def tar_xz(root: Path) -> str:
    return str(tarball(root / "code.tar.xz", SUBMITTED, "w:xz"))


def zipped(root: Path) -> str:
    with zipfile.ZipFile(root / "code.zip", "w") as archive:
        for name, content in SUBMITTED.items():
            archive.writestr(name, content)
    return str(root / "code.zip")


@pytest.mark.parametrize(
    "make",
    [folder, folder_uri, escaped_uri, tar_gz, tar_uri, plain_tar_named_gz, tar_xz, zipped],
)
@pytest.mark.parametrize("clutter", [None, "empty", "lost+found", ".DS_Store"])
def test_submitted_code_fills_a_code_folder_that_holds_nothing(
    base: Path, tmp_path: Path, make: Any, clutter: str | None
) -> None:
    if clutter:
        write(base / "code", {})
        inode = os.stat(base / "code").st_ino
    if clutter in ("lost+found", ".DS_Store"):
        (base / "code" / clutter).mkdir()
    code = fetch(job(base, make(tmp_path)))
    assert code == Code(directory=f"{base}/code", search_path=(f"{base}/code",))
    assert files(base) == {f"code/{name}": text for name, text in SUBMITTED.items()}
    assert os.listdir(base) == ["code"]
    if clutter:  # it may be a mount point or a cwd
        assert os.stat(base / "code").st_ino == inode


def test_a_single_file_is_copied_in(base: Path, tmp_path: Path) -> None:
    write(tmp_path, {"train.py": DUMP})
    code = fetch(job(base, str(tmp_path / "train.py")))
    assert files(code.directory) == {"train.py": DUMP}


def test_links_of_a_folder_lead_where_they_led(base: Path, tmp_path: Path) -> None:
    write(tmp_path, {"src/train.py": DUMP, "shared/data.txt": "D"})
    (tmp_path / "src" / "inside").symlink_to("train.py")
    (tmp_path / "src" / "outside").symlink_to("../shared/data.txt")
    code = fetch(job(base, str(tmp_path / "src")))
    assert os.readlink(f"{code.directory}/inside") == "train.py"
    assert Path(code.directory, "outside").read_text() == "D"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("{tmp}/nowhere", "{tmp}/nowhere does not exist"),
        ("file://{tmp}/nowhere", "nowhere does not exist"),
        ("file://host/code", "file:///path has three slashes"),
        ("s3://bucket", "'s3://bucket' names no object"),
        ("s3://bucket/src/", "'s3://bucket/src/' names no object"),
        ("s3://bucket/..", "'s3://bucket/..' names no object"),
        ("s3://me:secret@bucket/x", "an s3:// URI holds no credentials"),
        ("https://me:secret@host/x?sig=secret", "https://host/x is neither a path"),
        ("{tmp}", "holds the job's own folder"),
        ("{tmp}/fifo", "neither a folder nor a file"),
        ("{tmp}/broken.tar.gz", "broken.tar.gz is neither a tar"),
        ("{tmp}/evil.tar.gz", "member ../evil has '..' in its name"),
    ],
)
def test_code_that_cannot_be_had_is_one_sentence_and_leaves_nothing(
    base: Path, tmp_path: Path, value: str, why: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "broken.tar.gz").write_bytes(b"<html>")
    tarball(tmp_path / "evil.tar.gz", {"good": "x", "../evil": "x"})
    write(base / "code", {})
    with pytest.raises(CodeError) as caught:
        fetch(job(base, value.format(tmp=tmp_path)))
    assert why.format(tmp=tmp_path) in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(base) == ["code"]
    assert os.listdir(base / "code") == []


def test_what_a_killed_job_left_half_done_is_neither_code_nor_kept(
    base: Path, tmp_path: Path
) -> None:
    write(base / "code", {".sm-runtime-unpacking-x/code/train.py": "half"})
    fetch(job(base, tar_gz(tmp_path)))
    assert files(base / "code") == SUBMITTED


# --- which code wins


def test_submitted_code_wins_over_code_of_the_image_which_stays_importable(
    base: Path, tmp_path: Path
) -> None:
    write(
        base / "code",
        {
            "t.py": "print('OLD')",
            "image_only.py": "Y = 'image'",
            "lib/part.py": "X = 'OLD'",
        },
    )
    path = tarball(
        tmp_path / "sourcedir.tar.gz",
        {"t.py": "import image_only\nprint('NEW', image_only.Y)", "lib/part.py": ""},
    )
    before = files(base / "code")
    wanted = job(base, str(path), program="t.py")
    code = fetch(wanted)
    assert started(wanted, code) == "NEW image\n"
    assert code.search_path == (f"{base}/code-submitted", f"{base}/code")
    (warning,) = code.warnings
    assert "replaces: t.py, lib/part.py" in warning
    assert f"{base}/code-submitted" in warning
    assert files(base / "code") == before


def test_a_program_named_by_its_path_in_the_code_folder_is_the_submitted_one(
    base: Path, tmp_path: Path
) -> None:
    write(base / "code", {"t.py": "print('OLD')"})
    path = tarball(tmp_path / "sourcedir.tar.gz", {"t.py": "print('NEW')"})
    wanted = job(base, str(path), program=f"{base}/code/t.py")
    assert started(wanted, fetch(wanted)) == "NEW\n"


def test_the_warning_lists_ten_shadowed_files_and_counts_the_rest(
    base: Path, tmp_path: Path
) -> None:
    names = {f"f{n:02}": "" for n in range(13)}
    write(base / "code", dict(names))
    code = fetch(job(base, str(tarball(tmp_path / "a.tgz", names))))
    assert code.warnings[0].endswith("f08, f09 and 3 more")


def test_code_submitted_before_does_not_remain(base: Path, tmp_path: Path) -> None:
    write(base / "code", {"x": ""})
    write(base / "code-submitted", {"stale.py": ""})
    code = fetch(job(base, tar_gz(tmp_path)))
    assert files(code.directory) == SUBMITTED


def test_a_refused_archive_does_not_cost_the_code_of_before(base: Path, tmp_path: Path) -> None:
    write(base / "code", {"x": ""})
    write(base / "code-submitted", {"stale.py": ""})
    with pytest.raises(CodeError):
        fetch(job(base, str(tarball(tmp_path / "evil.tgz", {"a": "", "/evil": ""}))))
    assert files(base) == {"code/x": "", "code-submitted/stale.py": ""}


def test_the_image_is_preferred_where_that_is_asked_for(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(base / "code", {"train.py": "print('OLD')"})
    options = Options(code_preference="image")
    wanted = job(base, tar_gz(tmp_path), options=options)
    with caplog.at_level(logging.INFO):
        code = fetch(wanted)
    assert started(wanted, code) == "OLD\n"
    assert "is used as it is, not" in caplog.text
    empty = job(write(tmp_path / "other", {}), tar_gz(tmp_path), options=options)
    assert files(fetch(empty).directory) == SUBMITTED


# --- what is run

SH_DUMP = 'for a in "$@"; do printf "%s\\0" "$a"; done\n'
PY_DUMP = "import os, sys\nfor a in sys.argv[1:]: os.write(1, os.fsencode(a) + b'\\0')\n"
PROGRAMS: dict[str, tuple[str, dict[str, str], int]] = {
    "script": ("train.py", {"train.py": PY_DUMP}, 0o644),
    "script in a folder": ("src/train.py", {"src/train.py": PY_DUMP}, 0o644),
    "script beside a setup.py": ("train.py", {"train.py": PY_DUMP, "setup.py": "1/0"}, 0o644),
    "script with CR LF": ("train.py", {"train.py": PY_DUMP.replace("\n", "\r\n")}, 0o644),
    "module": ("-m pkg.mod", {"pkg/mod.py": PY_DUMP}, 0o644),
    "module without -m": ("pkg.mod", {"pkg/mod.py": PY_DUMP}, 0o644),
    "package": ("pkg", {"pkg/__main__.py": PY_DUMP}, 0o644),
    "function": (
        "pkg.mod:main",
        {"pkg/mod.py": "def main():\n " + PY_DUMP.replace("\n", "\n ")},
        0o644,
    ),
    "module of a package": ("pkg/mod.py", {"setup.py": "", "pkg/mod.py": PY_DUMP}, 0o644),
    "shell script": ("a.sh", {"a.sh": "#!/bin/sh\n" + SH_DUMP}, 0o755),
    "shell script without x": ("a.sh", {"a.sh": "#!/bin/bash\n" + SH_DUMP}, 0o644),
    "shell script without #!": ("a.sh", {"a.sh": SH_DUMP}, 0o644),
    "shell script, interpreter missing": ("a.sh", {"a.sh": "#!/no/such\n" + SH_DUMP}, 0o755),
    "shell script with CR LF": (
        "a.sh",
        {"a.sh": ("#!/bin/bash\n" + SH_DUMP).replace("\n", "\r\n")},
        0o644,
    ),
    "shell script with CR LF without #!": (
        "my a.sh",
        {"my a.sh": SH_DUMP.replace("\n", "\r\n")},
        0o644,
    ),
    "executable": ("run", {"run": "#!/usr/bin/env python3\n" + PY_DUMP}, 0o755),
    "executable without x": ("run", {"run": "#!/usr/bin/env python3\n" + PY_DUMP}, 0o644),
    "executable with CR LF": (
        "run",
        {"run": ("#!/usr/bin/python3 -B\n" + PY_DUMP).replace("\n", "\r\n")},
        0o755,
    ),
    "executable text without #!": ("run", {"run": SH_DUMP}, 0o755),
}


@pytest.mark.parametrize(("program", "content", "mode"), PROGRAMS.values(), ids=PROGRAMS.keys())
def test_every_kind_of_program_gets_its_arguments_byte_for_byte(
    base: Path, program: str, content: dict[str, str], mode: int
) -> None:
    code_folder = write(base / "code", dict(content))
    for name in content:
        (code_folder / name).chmod(mode)
    wanted = job(base, program=program)
    code = fetch(wanted)
    argv = entry_command(wanted, code, HOSTILE, sys.executable).argv
    result = subprocess.run(argv, cwd=code.directory, capture_output=True, check=False)
    assert result.stdout.split(b"\0")[:-1] == [os.fsencode(a) for a in HOSTILE], result.stderr
    assert result.returncode == 0
    assert not list(base.rglob("PWN"))
    assert {stat.S_IMODE((code_folder / n).stat().st_mode) for n in content} == {mode}


def test_a_shell_script_with_cr_lf_keeps_its_name_status_and_input(base: Path) -> None:
    text = 'set -e\r\nread line\r\nif true; then\r\n  echo "$0:$line"\r\nfi\r\nexit 7\r\n'
    write(base / "code", {"run.sh": text})
    wanted = job(base, program="run.sh")
    argv = entry_command(wanted, fetch(wanted), (), sys.executable).argv
    result = subprocess.run(
        argv, cwd=base / "code", input=b"hello\n", capture_output=True, check=False
    )
    assert (result.returncode, result.stdout) == (7, b"./run.sh:hello\n")


def test_the_script_runs_in_the_code_folder(base: Path) -> None:
    write(base / "code", {"src/train.py": DUMP})
    wanted = job(base, program="src/train.py")
    assert json.loads(started(wanted, fetch(wanted), ("x",))) == [f"{base}/code", ["'x'"]]


def test_without_a_program_the_files_that_are_there_are_listed(base: Path) -> None:
    write(base / "code", {"a.py": "", "lib/b.py": "", ".git/config": ""})
    wanted = job(base, program=None)
    with pytest.raises(ConfigError, match=r"SAGEMAKER_PROGRAM.*which has a\.py, lib/b\.py$"):
        entry_command(wanted, fetch(wanted), (), sys.executable)


def test_a_program_that_only_the_image_has_is_an_error_that_says_so(
    base: Path, tmp_path: Path
) -> None:
    write(base / "code", {"serve.py": ""})
    wanted = job(base, tar_gz(tmp_path), program="serve.py")
    with pytest.raises(CodeError, match=f"{base}/code has it, but the submitted code is used"):
        entry_command(wanted, fetch(wanted), (), sys.executable)


@pytest.mark.parametrize("program", ["pkg.mod", "-m nosuchmodule", "nosuchmodule:main"])
def test_a_module_that_is_nowhere_is_an_error_unless_something_will_be_installed(
    base: Path, program: str
) -> None:
    write(base / "code", {"a.py": ""})
    wanted = job(base, program=program)
    with pytest.raises(JobError, match="is not in"):
        entry_command(wanted, fetch(wanted), (), sys.executable)
    write(base / "code", {"requirements.txt": "x"})
    assert entry_command(wanted, fetch(wanted), (), sys.executable)


# --- the check


@pytest.mark.parametrize(
    ("submitted", "program", "expected"),
    [
        (None, "train.py", []),
        (None, "trian.py", ["did you mean 'train.py'?"]),
        (None, None, ["SAGEMAKER_PROGRAM"]),
        ("{tmp}/sourcedir.tar.gz", "train.py", []),
        ("{tmp}/sourcedir.tar.gz", None, ["SAGEMAKER_PROGRAM"]),
        ("{tmp}/nowhere", "train.py", ["does not exist"]),
    ],
)
def test_the_check_finds_what_is_wrong_and_alters_nothing(
    base: Path, tmp_path: Path, submitted: str | None, program: str | None, expected: list[str]
) -> None:
    write(base / "code", {"train.py": ""})
    tar_gz(tmp_path)
    found = problems(job(base, submitted and submitted.format(tmp=tmp_path), program=program))
    assert len(found) == len(expected)
    assert all(part in text for part, text in zip(expected, found, strict=True))
    assert files(base).keys() == {"code/train.py"}

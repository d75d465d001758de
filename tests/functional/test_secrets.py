"""Nothing that the runtime prints or writes holds a secret."""

from __future__ import annotations

import json

import pytest

from tests.harness import RUNTIME, Base

SECRETS = {
    "hyperparameter": "hunter2-is-long",
    "token": "tok-0123456789abcdef",
    "environment": "env-secret-value-77",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "hf": "hf_abcdefghijklmnopqrstuvwxyz",
    "url": "urlpassw0rd",
}
SCRIPT = """
import os, sys
values = sys.argv + list(os.environ.values())
open("seen", "w").write(" ".join(values))
raise ValueError("cannot connect with " + " ".join(values))
"""


def plant(base: Base) -> None:
    base.hyperparameters(
        db_password=SECRETS["hyperparameter"],
        nested=json.dumps({"api_token": SECRETS["token"]}),
        key_id=SECRETS["aws"],
        hub=SECRETS["hf"],
        index=f"https://user:{SECRETS['url']}@host/simple",
    )
    base.environ["MY_SECRET"] = SECRETS["environment"]


def assert_clean(text: str) -> None:
    assert not [name for name, value in SECRETS.items() if value in text], text


def test_a_failing_job_shows_no_secret(base: Base) -> None:
    plant(base)
    result = base.script(SCRIPT).run()
    assert result.status == 1
    own = [line for line in result.log.splitlines() if " sm-runtime " in line]
    assert_clean("\n".join(own))
    assert_clean(base.failure())
    assert_clean(base.path("output/data/failure.json").read_text())
    seen = base.path("code/seen").read_text()
    assert all(value in seen for value in SECRETS.values())


@pytest.mark.parametrize("phase", ["config", "code", "install"])
def test_a_job_that_does_not_start_shows_no_secret(base: Base, phase: str) -> None:
    plant(base)
    base.script(SCRIPT)
    if phase == "config":
        base.write("input/config/resourceconfig.json", "{")
    elif phase == "code":
        base.environ["SAGEMAKER_SUBMIT_DIRECTORY"] = f"/nonexistent/{SECRETS['hyperparameter']}"
    else:
        base.environ["PIP_INDEX_URL"] = f"http://user:{SECRETS['url']}@127.0.0.1:9/simple"
        base.write("code/requirements.txt", "nosuchpackage==9\n")
    result = base.run()
    assert result.status == 1
    assert base.failure_json()["phase"] == phase
    assert_clean(result.log)
    assert_clean(base.failure())
    assert_clean(base.path("output/data/failure.json").read_text())


HIDDEN = {
    "quoted by a shell": ({"db_password": "it's-hunter2-99"}, {}, "hunter2-99"),
    "a short name": ({"ftp_pass": "hunter2zzzz"}, {}, "hunter2zzzz"),
    "a verbatim argument": ({}, {"SM_RUNTIME_ARGS": '["--api-key","hunter2zzzz"]'}, "hunter2zzzz"),
    "one word": ({}, {"SM_RUNTIME_ARGS": '["--api-key=hunter2zzzz"]'}, "hunter2zzzz"),
    "cut": (
        {},
        {"MY_TOKEN": "s3cr3t" * 40, "SAGEMAKER_SUBMIT_DIRECTORY": "/data/" + "s3cr3t" * 40},
        "s3cr3t",
    ),
    "not JSON": ({}, {"SM_RUNTIME_JOB": ' \'{"DB_PASSWORD":"hunter2zzzz"}\''}, "hunter2zzzz"),
    "a malformed option": (
        {},
        {"MY_TOKEN": "hunter2z", "SM_RUNTIME_CHOWN": "hunter2z"},
        "hunter2z",
    ),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_a_secret_in_another_spelling_is_hidden_too(base: Base, case: str) -> None:
    values, environ, secret = HIDDEN[case]
    base.hyperparameters(**values)
    base.environ |= environ
    result = base.script(
        "import subprocess, sys\nsubprocess.Popen(['sleep', '1000', *sys.argv])\nsys.exit(3)"
    ).run()
    assert result.status in (1, 3)
    own = [line for line in result.log.splitlines() if " sm-runtime " in line]
    assert secret not in "\n".join(own) + base.failure()
    assert secret not in base.path("output/data/failure.json").read_text()


def test_the_working_folder_is_no_secret(base: Base) -> None:
    result = base.script("print('hello')").run(PWD=str(base.root))
    assert str(base.root) in result.log


@pytest.mark.parametrize("arguments", [("env",), ("env", "--json"), ("check",)])
def test_the_other_commands_show_no_secret(base: Base, arguments: tuple[str, ...]) -> None:
    plant(base)
    result = base.script(SCRIPT).run(*arguments, command=RUNTIME)
    assert_clean(result.out.decode() + result.log)


def test_env_shows_secrets_where_they_are_asked_for(base: Base) -> None:
    plant(base)
    result = base.script("").run("env", "--show-secrets", command=RUNTIME)
    assert SECRETS["hyperparameter"] in result.out.decode()


KNOWN_BY = {
    "SM_RUNTIME_CLUSTER_SECRET": "what-the-hosts-know-each-other-by",
    "SM_RUNTIME_CLUSTER_SECRET_FILE": "/run/secrets/cluster",
}
"""A plain job has no use for it, and may be given it all the same."""


def test_a_script_does_not_get_what_hosts_know_each_other_by(base: Base) -> None:
    names = "import os\nprint('given', [n for n in os.environ if 'CLUSTER' in n])"
    base.environ |= KNOWN_BY
    result = base.script(names).run()
    assert result.status == 0
    assert result.out == b"given []\n"


def test_a_build_does_not_get_what_hosts_know_each_other_by(base: Base) -> None:
    base.write("code/requirements.txt", "./package\n")
    base.write(
        "code/package/pyproject.toml",
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
    )
    seen = base.path("seen")
    base.write(
        "code/package/backend.py",
        f"import os\nopen({str(seen)!r}, 'w').write(' '.join(os.environ))\nraise SystemExit(1)\n",
    )
    base.environ |= KNOWN_BY
    result = base.script("").run(PIP_NO_INDEX="1", MINE="1")
    assert result.status == 1, result.log
    names = seen.read_text().split()
    assert "MINE" in names
    assert not [name for name in names if "CLUSTER" in name]

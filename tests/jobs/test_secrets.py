"""Nothing that the runtime prints or writes holds a secret."""

from __future__ import annotations

import signal

import pytest

from tests.harness import Base, eventually
from tests.secrets_table import (
    HOWS,
    RAISES,
    SCRIPT,
    SECRETS,
    SHAPES_IN_PARTS,
    assert_clean,
    assert_hidden,
    key_lines,
    own,
    pem,
    plant,
    plant_everywhere,
)


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


# -- some shapes of a secret, in many places: all are in tests/unit -------------------------------


@pytest.mark.parametrize(("part", "how"), [(n % 4, how) for n, how in enumerate(HOWS)])
def test_no_shape_of_a_secret_gets_into_the_reports_of_a_failure(
    base: Base, part: int, how: str
) -> None:
    values = SHAPES_IN_PARTS[part]
    plant_everywhere(base, values)
    result = base.script(RAISES).run(HOW=how)
    assert result.status != 0
    assert_hidden(own(result), values)
    assert_hidden(base.failure(), values)
    assert_hidden(base.path("output/data/failure.json").read_text(), values)
    assert base.failure_json()["phase"] == "train"


KEY = pem()
KEYS = {f"line {number}": line for number, line in enumerate(key_lines(KEY))}


@pytest.mark.parametrize("how", ["raised", "printed", "line by line", "cut by the tail"])
def test_no_line_of_a_private_key_gets_into_the_reports(base: Base, how: str) -> None:
    base.environ["DEPLOY"] = KEY
    base.write("code/key", KEY)
    acts = {
        "raised": "raise ValueError({'key': key})",
        "printed": "raise ValueError('cannot load\\n' + key + '\\nas a key')",
        "line by line": "for line in key.splitlines(): print(line, file=sys.stderr)\nsys.exit(3)",
        # So that the last 64 KiB begin in the middle of it.
        "cut by the tail": (
            "sys.stderr.write(key + ('x' * 63 + '\\n') * (1024 - 6) + 'no key\\n')\nsys.exit(1)"
        ),
    }
    result = base.script(f"import sys\nkey = open('key').read()\n{acts[how]}").run()
    assert result.status != 0
    assert_hidden(own(result), KEYS)
    assert_hidden(base.failure(), KEYS)
    assert_hidden(base.path("output/data/failure.json").read_text(), KEYS)


def test_no_line_of_a_private_key_gets_into_the_stacks(base: Base) -> None:
    base.environ["DEPLOY"] = KEY
    running = base.script(
        "import os, sys, time\nlines = os.environ['DEPLOY'].splitlines()\nprint('ready')\n"
        "while not os.path.exists('stop'):\n"
        "    for line in lines:\n        print(line, file=sys.stderr)\n        time.sleep(0.01)\n"
    ).start()
    running.ready()
    eventually(lambda: KEYS["line 1"].encode() in running.err, "the key is printed")
    running.send(signal.SIGUSR1)
    stacks = base.path("output/data/stacks.txt")
    eventually(lambda: stacks.exists() and "train.py" in stacks.read_text(), "the stacks")
    base.write("code/stop", "")
    assert running.wait().status == 0
    assert "***" in stacks.read_text()
    assert_hidden(stacks.read_text(), KEYS)


def test_a_long_message_with_secrets_is_masked_soon(base: Base) -> None:
    """The last 64 KiB of both streams, full of what might be one."""
    base.environ |= {f"TOKEN_{number}": f"value-of-token-{number:03}" for number in range(100)}
    result = base.script(
        "import sys\n"
        "for i in range(3000): print(f'key_{i}: password={i} token-{i} https://u:p@h/{i}',"
        " file=sys.stderr)\n"
        "raise ValueError('value-of-token-007 ' * 100)"
    ).run(seconds=50)
    assert result.status == 1
    assert "value-of-token" not in base.failure()
    assert base.failure().startswith("ValueError: *** ***")


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

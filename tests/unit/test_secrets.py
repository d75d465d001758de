"""No shape of a secret, in whatever place, gets into what the runtime prints or writes."""

from __future__ import annotations

import json

import pytest

from tests import dry
from tests.harness import Base
from tests.secrets_table import (
    ADDRESSES,
    HIDDEN_OF_ADDRESS,
    HOWS,
    NAMED,
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


@pytest.mark.parametrize("arguments", [("env",), ("env", "--json"), ("check",)])
def test_the_other_commands_show_no_secret(base: Base, arguments: tuple[str, ...]) -> None:
    plant(base)
    result = dry.look(base.script(SCRIPT), *arguments)
    assert_clean(result.out + result.log)


def test_env_shows_secrets_where_they_are_asked_for(base: Base) -> None:
    plant(base)
    result = dry.look(base.script(""), "env", "--show-secrets")
    assert SECRETS["hyperparameter"] in result.out


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("how", HOWS)
def test_no_shape_of_a_secret_gets_into_the_reports_of_a_failure(
    base: Base, part: int, how: str
) -> None:
    values = SHAPES_IN_PARTS[part]
    plant_everywhere(base, values)
    result = dry.train(base.script(RAISES), dry.executed, HOW=how)
    assert result.status != 0
    assert_hidden(own(result), values)
    assert_hidden(base.failure(), values)
    assert_hidden(base.path("output/data/failure.json").read_text(), values)
    assert base.failure_json()["phase"] == "train"


@pytest.mark.parametrize("how", HOWS)
def test_no_address_with_a_secret_gets_into_the_reports_of_a_failure(base: Base, how: str) -> None:
    for number, address in enumerate(ADDRESSES.values()):
        base.environ[f"THING_{number}"] = "".join(address)
    base.hyperparameters(**{f"thing_{n}": "".join(a) for n, a in enumerate(ADDRESSES.values())})
    result = dry.train(base.script(RAISES), dry.executed, HOW=how)
    assert result.status != 0
    assert_hidden(own(result), HIDDEN_OF_ADDRESS)
    assert_hidden(base.failure(), HIDDEN_OF_ADDRESS)
    assert_hidden(base.path("output/data/failure.json").read_text(), HIDDEN_OF_ADDRESS)


@pytest.mark.parametrize("how", HOWS)
def test_no_named_secret_inside_of_a_variable_gets_into_the_reports_of_a_failure(
    base: Base, how: str
) -> None:
    base.environ["CONFIG"] = json.dumps({"deep": [NAMED]})
    base.environ["CONFIG_TEXT"] = json.dumps(json.dumps({"deep": NAMED}))
    base.environ["THING"] = " ".join(f"--{n} '{v}'" for n, v in NAMED.items() if " " not in v)
    base.hyperparameters(config=json.dumps({"deep": [NAMED]}))
    result = dry.train(base.script(RAISES), dry.executed, HOW=how)
    assert result.status != 0
    assert_hidden(own(result), NAMED)
    assert_hidden(base.failure(), NAMED)
    assert_hidden(base.path("output/data/failure.json").read_text(), NAMED)


@pytest.mark.parametrize("part", range(4))
def test_no_shape_of_a_secret_is_shown_without_a_failure(base: Base, part: int) -> None:
    values = SHAPES_IN_PARTS[part]
    plant_everywhere(base, values)
    base.write("input/config/resourceconfig.json", {"current_host": "a", "hosts": ["a", "b"]})
    base.environ["SM_RUNTIME_ARGS"] = json.dumps(["--other", *values.values()])
    assert_hidden(own(dry.train(base.script(""))), values)
    for arguments in (("env",), ("env", "--json"), ("env", "--launch")):
        result = dry.look(base, *arguments)
        assert result.status == 0, result.log
        assert_hidden(result.out + result.log, values)
    hyperparameters = json.loads(base.path("input/config/hyperparameters.json").read_text())
    base.hyperparameters(
        **hyperparameters,
        sagemaker_mpi_enabled="true",
        sagemaker_mpi_custom_mpi_options=" ".join(f"-x THING={v}" for v in values.values()),
    )
    result = dry.look(base, "env", "--launch", PATH="/nowhere")  # or Open MPI would be asked
    assert_hidden(result.out + result.log, values)


OPTIONS = ("SM_RUNTIME_CHOWN", "SM_RUNTIME_STOP_SIGNAL", "SM_RUNTIME_JOB", "SM_RUNTIME_LAUNCHER")


@pytest.mark.parametrize("part", range(4))
def test_no_shape_of_a_secret_is_shown_for_a_mistake(base: Base, part: int) -> None:
    values = SHAPES_IN_PARTS[part]
    base.script("")
    for number, value in enumerate(values.values()):
        option = OPTIONS[number % len(OPTIONS)]
        result = dry.look(base, "check", **{option: f"x{'y' * 50} {value}"})
        assert result.status == 1
        assert option in result.out
        assert_hidden(result.out + result.log, values)
    plant_everywhere(base, values)
    base.write("input/config/resourceconfig.json", "{")
    result = dry.train(base, SM_RUNTIME_JOB="".join(ADDRESSES["AWS, presigned"]))
    assert result.status == 1
    assert "SM_RUNTIME_JOB" in base.failure()
    assert_hidden(result.log + base.failure(), {**values, **HIDDEN_OF_ADDRESS})


KEY = pem()
KEYS = {f"line {number}": line for number, line in enumerate(key_lines(KEY))}


@pytest.mark.parametrize("place", ["a variable", "escaped", "JSON", "a hyperparameter", "nowhere"])
@pytest.mark.parametrize("how", ["raised", "printed", "line by line", "cut by the tail"])
def test_no_line_of_a_private_key_gets_into_the_reports(base: Base, place: str, how: str) -> None:
    if place == "a variable":
        base.environ["DEPLOY"] = KEY
    elif place == "escaped":
        base.environ["DEPLOY"] = KEY.replace("\n", "\\n")
    elif place == "JSON":
        base.environ["DEPLOY"] = json.dumps({"a": {"b": KEY}})
    elif place == "a hyperparameter":
        base.hyperparameters(deploy=KEY)
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
    base.script(f"import sys\nwith open('key') as file: key = file.read()\n{acts[how]}")
    result = dry.train(base, dry.executed)
    assert result.status != 0
    assert_hidden(own(result), KEYS)
    assert_hidden(base.failure(), KEYS)
    assert_hidden(base.path("output/data/failure.json").read_text(), KEYS)

"""The script's arguments and variables, held to the toolkit's by golden files."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sm_runtime.contract import environment, load
from sm_runtime.contract.reader import Document
from sm_runtime.job.model import Channel, Cluster, Hardware, Job, Options, Paths

GOLDEN = Path(__file__).parents[1] / "golden"
ARGV = json.loads((GOLDEN / "argv.json").read_text())
CASES = sorted(path.stem for path in GOLDEN.glob("*.env"))
CPU = Hardware(cpus=1)


def parse(hyperparameters: dict[str, Any], **variables: str) -> Job:
    document = Document("hyperparameters.json", json.dumps(hyperparameters).encode())
    parsed = load.parse({"hyperparameters": document}, variables, Paths(), "box")
    assert parsed.problems == ()
    assert parsed.job is not None
    return parsed.job


def job(hyperparameters: dict[str, Any] | None = None, **fields: Any) -> Job:
    cluster = Cluster(current_host="algo-1", hosts=("algo-1",))
    return Job(paths=Paths(), cluster=cluster, hyperparameters=hyperparameters or {}, **fields)


@pytest.mark.parametrize("row", ARGV["single"], ids=lambda row: f"{row['row']}-{row['key']}")
def test_one_hyperparameter_becomes_the_toolkits_arguments(row: Any) -> None:
    assert list(environment.arguments(parse({row["key"]: row["value"]}))) == row["argv"]


@pytest.mark.parametrize("row", ARGV["several"], ids=lambda row: " ".join(row["hyperparameters"]))
def test_several_hyperparameters_become_the_toolkits_arguments(row: Any) -> None:
    assert list(environment.arguments(parse(row["hyperparameters"]))) == row["argv"]


def test_bytes_are_latin_1() -> None:
    assert environment.arguments(job({"b": b"2\xe9"})) == ("-b", "2é")


@pytest.mark.parametrize("name", CASES)
def test_variables_are_the_toolkits_in_its_order(name: str) -> None:
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    documents = {
        key: Document(key, json.dumps(value).encode()) for key, value in case["documents"].items()
    }
    parsed = load.parse(documents, case["environ"], Paths(), case["hostname"])
    assert (parsed.problems, parsed.warnings) == ((), ())
    assert parsed.job is not None
    found = environment.variables(parsed.job, Hardware(**case["hardware"]))
    expected = (GOLDEN / f"{name}.env").read_text().splitlines()
    more = environment.of_drivers(parsed.job)
    shown = [f"{key}={value}" for key, value in found.items() if key not in more]
    assert shown == expected


def test_the_drivers_of_the_sdk_3_have_their_variables_beside_the_toolkits() -> None:
    cluster = Cluster(current_host="algo-2", hosts=("algo-1", "algo-10", "algo-2"))
    given = Job(paths=Paths(), cluster=cluster, program="train.py")
    assert (
        environment.variables(given, CPU).items()
        >= {
            "SM_SOURCE_DIR": "/opt/ml/code",
            "SM_ENTRY_SCRIPT": "train.py",
            "SM_INPUT_DATA_DIR": "/opt/ml/input/data",
            "SM_OUTPUT_FAILURE": "/opt/ml/output/failure",
            "SM_HOST_COUNT": "3",
            "SM_CURRENT_HOST_RANK": "2",
            "SM_MASTER_ADDR": "algo-1",
            "SM_MASTER_PORT": "7777",
        }.items()
    )


def test_a_request_gives_the_variables_of_the_same_job_in_three_files() -> None:
    files = [GOLDEN / name for name in ("request.env", "request-as-files.env")]
    assert files[0].read_text() == files[1].read_text()


STYLED = {
    "amp": "true",
    "ema": "false",
    "py": "True",
    "pyoff": "False",
    "lr": "1.10",
    "sci": "1e3",
    "zip": "007",
    "lst": '["x", "y"]',
    "dct": '{"b": 1}',
    "txt": '"a b"',
    "raw": "a b",
    "nul": "null",
    "num": 1.5,
    "obj": {"a": [1]},
}


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("flags", "--amp --dct b=1 --lr 1.1 --lst ['x', 'y'] --nul  --num 1.5 --obj a=[1] --py"),
        ("json", '--amp true --dct {"b": 1} --ema false --lr 1.10 --lst ["x", "y"] --nul null'),
        ("flags,json", '--amp --dct {"b": 1} --lr 1.10 --lst ["x", "y"] --nul null --num 1.5'),
        ("json", '--num 1.5 --obj {"a":[1]} --py True --pyoff False --raw a b --sci 1e3 --txt a b'),
        ("json", "--txt a b --zip 007"),
        ("sagemaker", "--amp True --dct b=1 --ema False --lr 1.1"),
    ],
)
def test_an_argument_style_is_opt_in(style: str, expected: str) -> None:
    styled = parse(STYLED, SM_RUNTIME_ARGUMENT_STYLE=style)
    assert expected in " ".join(environment.arguments(styled))


def test_flags_leave_out_what_is_false() -> None:
    tokens = environment.arguments(parse(STYLED, SM_RUNTIME_ARGUMENT_STYLE="flags"))
    assert "--ema" not in tokens
    assert "--pyoff" not in tokens


def test_a_verbatim_list_follows_the_hyperparameters() -> None:
    given = parse({"a": "1"}, SM_RUNTIME_ARGS='["--do_train", "", "a b"]')
    assert environment.arguments(given) == ("-a", "1", "--do_train", "", "a b")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
keys = st.text(st.characters(codec="utf-8", exclude_characters="\0="), max_size=8).filter(
    lambda key: not key.startswith("sagemaker_") and key != "_tuning_objective_metric"
)


def restated(given: dict[str, Any]) -> list[str]:
    """The toolkit's rule, once more."""
    tokens = []
    for key in sorted(given):
        value = given[key]
        with contextlib.suppress(ValueError, TypeError):
            value = json.loads(value)
        tokens.append(("-" if len(key) == 1 else "--" if key else "") + key)
        if isinstance(value, dict):
            tokens.append(",".join(f"{k}={v}" for k, v in sorted(value.items())))
        else:
            tokens.append("" if value is None else str(value))
    return tokens


@given(st.dictionaries(keys, texts | json_values.map(json.dumps) | json_values, max_size=4))
def test_any_hyperparameters_become_the_toolkits_arguments(given: dict[str, Any]) -> None:
    document = Document("hyperparameters.json", json.dumps(given).encode())
    parsed = load.parse({"hyperparameters": document}, {}, Paths(), "box")
    if parsed.job is None:
        # Only what no process can be given is refused.
        assert all("NUL" in problem for problem in parsed.problems)
    else:
        assert list(environment.arguments(parsed.job)) == restated(given)


def test_names_that_no_shell_holds_have_a_twin() -> None:
    given = job(
        {"batch-size": 32, "é x": 1},
        channels=(Channel(name="val.set-1", path="/opt/ml/input/data/val.set-1"),),
    )
    found, warnings = environment.twins(environment.variables(given, CPU))
    assert found == {
        "SM_CHANNEL_VAL_SET_1": "/opt/ml/input/data/val.set-1",
        "SM_HP_BATCH_SIZE": "32",
        "SM_HP___X": "1",
    }
    assert warnings == ()


@pytest.mark.parametrize(
    ("keys", "name", "value"),
    [
        (("a-b", "a_b"), "SM_HP_A_B", "2"),
        (("a_b", "a-b"), "SM_HP_A_B", "1"),
        (("a-b", "a.b"), "SM_HP_A_B", "1"),
        (("Lr", "lr"), "SM_HP_LR", "2"),
    ],
)
def test_keys_that_share_a_name_are_warned_of(keys: tuple[str, str], name: str, value: str) -> None:
    given = job({keys[0]: "1", keys[1]: "2"})
    found, warnings = environment.process_environment(given, CPU, {}, ())
    assert found[name] == value
    assert len(warnings) == 1
    assert all(repr(key) in warnings[0] for key in keys) and name in warnings[0]


def test_channels_that_share_a_name_are_warned_of() -> None:
    channels = tuple(Channel(name=name, path=f"/d/{name}") for name in ("Train", "train"))
    _, warnings = environment.process_environment(job(channels=channels), CPU, {}, ())
    assert warnings == (
        "the channel 'Train' and the channel 'train' are both SM_CHANNEL_TRAIN: it holds the value"
        " of the latter",
    )


def test_the_script_inherits_what_the_user_and_the_image_set() -> None:
    given = job(
        name="j",
        managed=False,
        region="eu-west-1",
        environment={"A": "request", "PYTHONUNBUFFERED": ""},
        reserved={"sagemaker_job_name": "123"},
    )
    inherited = {"A": "image", "B": "image", "PYTHONPATH": "/theirs", "SM_LOG_LEVEL": "stale"}
    found, warnings = environment.process_environment(given, CPU, inherited, ("/code", "/ours"))
    assert warnings == ()
    expected = {
        "A": "request",
        "B": "image",
        "PYTHONPATH": "/code:/ours:/theirs",
        "PYTHONUNBUFFERED": "",
        "SM_LOG_LEVEL": "20",
        "TRAINING_JOB_NAME": "j",
        "SAGEMAKER_JOB_NAME": "123",
        "SAGEMAKER_REGION": "eu-west-1",
        "CURRENT_HOST": "algo-1",
    }
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("unbuffered", "expected"), [(True, "1"), (False, None)], ids=["default", "off"]
)
def test_python_writes_at_once_unless_told_otherwise(
    unbuffered: bool, expected: str | None
) -> None:
    given = job(options=Options(unbuffered=unbuffered))
    found, _ = environment.process_environment(given, CPU, {}, ())
    assert found.get("PYTHONUNBUFFERED") == expected
    assert "PYTHONPATH" not in found
    assert "TRAINING_JOB_NAME" not in found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("db_password", "hunter22"),
        ("dbPassword", "hunter22"),
        ("HF_TOKEN", "hf_abcdefgh"),
        ("hfToken", "abcdefgh"),
        ("AWS_SECRET_ACCESS_KEY", "/abC+dEf/GhIjKlMnOpQrStUvWxYz0123456789AB"),
        ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
        ("WANDB_API_KEY", "0123456789abcdef"),
        ("apikey", "abcd"),
        ("slack-token", "https://hooks.example.com/services/T000/B000"),
        ("key", "a1b2c3d4e5f6g7h8"),
        ("PIP_INDEX_URL_PASSWORD", "https-pw"),
    ],
)
def test_a_value_that_looks_secret_is_masked(name: str, value: str) -> None:
    assert environment.secrets(job(), {name: value}) == (value,)
    assert environment.secrets(job({name: value}), {}) == (value,)
    assert environment.secrets(job({"nested": {"deep": [{name: value}]}}), {}) == (value,)
    assert environment.secrets(job(environment={name: value}), {}) == (value,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_tokens", "many tokens"),
        ("tokenizer", "bert-base"),
        ("token", "12345678"),
        ("password", "true"),
        ("secret", "abc"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/Token"),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/A1"),
        ("credentials", "/root/.aws/credentials"),
        ("password", "file:/run/pw"),
        ("key", "label"),
        ("sort_key", "two words and 123 more"),
        ("SSH_AUTH_SOCK", "/tmp/ssh-AbC/agent.12345"),
        ("keyboard", "a1b2c3d4e5f6g7h8"),
        ("monkey", "a1b2c3d4e5f6g7h8"),
    ],
)
def test_a_value_that_is_no_secret_stays_readable(name: str, value: str) -> None:
    assert environment.secrets(job({name: value}), {name: value}) == ()


def test_passwords_in_urls_and_inside_secrets_are_masked_the_longest_first() -> None:
    given = job({"credentials": {"user": "bobby", "more": ["long-one"]}})
    url = "https://user:pa55word@pypi.example.com/simple"
    assert environment.secrets(given, {"PIP_INDEX_URL": url}) == ("long-one", "pa55word", "bobby")

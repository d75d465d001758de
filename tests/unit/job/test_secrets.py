"""What is masked in a text, in which spelling, and what stays readable."""

from __future__ import annotations

import base64
import json
import pprint
import shlex
import time
import urllib.parse

import pytest

from sm_runtime.job.secrets import Mask, secrets_in
from tests.secrets_table import (
    ADDRESSES,
    ALNUM,
    BASE64,
    HIDDEN_OF_ADDRESS,
    NAMED,
    ORDINARY,
    SHAPES,
    draw,
    key_lines,
    pem,
)

CONTEXTS = {
    "alone": "{}",
    "in a sentence": "cannot log in with {}, giving up",
    "a line of its own": "first\n{}\nlast",
    "quoted": "value '{}' is refused",
    "a dict": "{{'url': 'x', 'value': '{}', 'more': 1}}",
    "JSON": '{{"a": {{"b": ["{}"]}}}}',
    "JSON in JSON": '{{"a": "{{\\"b\\": \\"{}\\"}}"}}',
    "an argument": "train.py --thing {} --other 1",
    "a list of arguments": "['train.py', '--thing', '{}']",
    "an assignment": "THING={}",
    "a query": "https://host/path?thing={}&other=1",
    "an exception": "ValueError: ('cannot', '{}')",
}


@pytest.mark.parametrize("place", CONTEXTS)
def test_a_known_shape_is_masked_wherever_it_is(place: str) -> None:
    for shape, value in SHAPES.items():
        whole = CONTEXTS[place].format(value)
        text = Mask()(whole)
        assert value not in text and value[-12:] not in text, (shape, text)
        assert text.replace("***", value) == whole, (shape, text)


def test_a_value_with_a_known_shape_is_found() -> None:
    missed = [shape for shape, value in SHAPES.items() if value not in secrets_in("THING", value)]
    assert missed == []


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_secret_part_of_an_address_is_masked(address: str) -> None:
    begins, rest = ADDRESSES[address]
    secret = HIDDEN_OF_ADDRESS[address]
    for name, context in CONTEXTS.items():
        if "?" in begins and name == "a query":
            continue
        text = Mask()(context.format(begins + rest))
        assert secret not in text and secret[-12:] not in text, (name, text)
        host = "/".join(begins.split("/")[: 3 if "://" in begins else 1])
        assert host.partition("?")[0] in text, (name, text)


FORMS = {
    "a shell": "{name}={value}",
    "a quoted value": '{name}="{value}"',
    "Python": "{name} = '{value}'",
    "an argument": "f({name}='{value}', more=1)",
    "a dict": "{{'more': 1, '{name}': '{value}'}}",
    "a dict of lists": "{{'{name}': ['{value}']}}",
    "a pair": "[('more', '1'), ('{name}', '{value}')]",
    "bytes": "{{b'{name}': b'{value}'}}",
    "JSON": '{{"more": 1, "{name}": "{value}"}}',
    "JSON in JSON": '{{"a": "{{\\"{name}\\": \\"{value}\\"}}"}}',
    "JSON in JSON in JSON": '"{{\\"a\\": \\"{{\\\\\\"{name}\\\\\\": \\\\\\"{value}\\\\\\"}}\\"}}"',
    "YAML": "{name}: '{value}'",
    "PHP": "'{name}' => '{value}'",
    "Go": '{name} := "{value}"',
    "an option": "train.py --{name} {value!r} --more 1",
    "an option in one word": "train.py --{name}={value!r} --more 1",
    "a list of options": "['train.py', '--{name}', '{value}', '--more', '1']",
    "an item": "os.environ['{name}'] = '{value}'",
    "a comparison": "assert {name} == '{value}'",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_value_with_the_name_of_a_secret_is_masked(name: str) -> None:
    value = NAMED[name]
    for form, context in FORMS.items():
        if form == "a shell" and " " in value:
            continue
        given = context.format(name=name, value=value)
        text = Mask()(given)
        assert value not in text and value[-10:] not in text, (form, text)
        assert name in text and len(text) >= len(given) - len(value) - 1, (form, text)


@pytest.mark.parametrize(
    "text",
    [
        "x-api-key: {}",
        "Authorization: Bearer {}",
        "authorization: token {}",
        '{{"Authorization": "Bearer {}"}}',
        "{{'Authorization': 'Basic {}'}}",
        "-H 'Authorization: ApiKey {}'",
        "Proxy-Authorization: Basic {}",
        "Authorization: AWS4-HMAC-SHA256 Credential=A/B/C, SignedHeaders=host, Signature={}",
        "Cookie: theme=dark; session={}",
        "Set-Cookie: sid={}; Path=/",
        "bearer {}",
        "Server=db;Database=x;User Id=sa;Password={};Encrypt=true",
        "Endpoint=sb://x/;SharedAccessKeyName=n;SharedAccessKey={}",
        "host=db user=me password={} dbname=x",
        "CREATE USER me WITH PASSWORD '{}'",
        "curl -sS -u me:{} https://example.com",
        "curl --user me:{} https://example.com",
        "//registry.npmjs.org/:_authToken={}",
        "client_secret: {}",
        "password => {}",
    ],
)
def test_headers_and_connection_strings_are_masked(text: str) -> None:
    value = draw(ALNUM, 24, "header")
    shown = Mask()(f"before {text.format(value)}\nafter")
    assert value not in shown and value[-10:] not in shown
    assert shown.startswith("before ") and shown.endswith("\nafter")


def test_basic_credentials_are_masked_without_a_header() -> None:
    value = base64.b64encode(b"user:hunter2zz").decode()
    assert Mask()(f"sent Basic {value}") == "sent Basic ***"


def test_ordinary_text_stays() -> None:
    for text in ORDINARY:
        assert Mask()(text) == text
        assert Mask()(f"ValueError: {text}\n{text}") == f"ValueError: {text}\n{text}"
        if "\n" not in text:
            assert Mask()(json.dumps({"x": text})) == json.dumps({"x": text})


def test_a_masked_text_stays_as_it_is() -> None:
    for value in (*SHAPES.values(), *("".join(parts) for parts in ADDRESSES.values())):
        once = Mask()(f"password='x1{value}' {value}")
        assert Mask()(once) == once


KINDS = ["RSA ", "EC ", "DSA ", "OPENSSH ", "ENCRYPTED ", ""]


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_key_is_masked_in_every_spelling(kind: str) -> None:
    key = pem(kind)
    for text in (key, repr(key), json.dumps({"a": key}), json.dumps(json.dumps([key]))):
        shown = Mask()(f"before {text} after")
        assert not [line for line in key_lines(key) if line in shown]
        assert shown.startswith("before ") and shown.endswith(" after")


HEADERS = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,0123456789ABCDEF0123456789ABCDEF\n\n"


def test_a_private_key_of_another_format_is_masked() -> None:
    old = pem().replace("-----\n", "-----\n" + HEADERS, 1)
    pgp = pem("PGP ").replace("KEY-----", "KEY BLOCK-----")
    ssh2 = pem("SSH2 ENCRYPTED ").replace("-----", "----")
    ssh2 = ssh2.replace("----BEGIN ", "---- BEGIN ").replace("KEY----", "KEY ----")
    putty = "PuTTY-User-Key-File-2: ssh-rsa\nEncryption: none\nPrivate-Lines: 2\n"
    putty += "\n".join(key_lines(pem())) + "\nPrivate-MAC: " + draw("0123456789abcdef", 40)
    for key in (old, pgp, ssh2, putty):
        shown = Mask()(f"before\n{key}\nafter")
        assert not [line for line in key.splitlines() if len(line) == 64 and line in shown], shown
        assert shown.startswith("before\n") and shown.endswith("\nafter")


@pytest.mark.parametrize("at", range(1, 14))
def test_a_private_key_of_which_a_part_is_cut_off_is_masked(at: int) -> None:
    key = pem()
    lines = key.splitlines()
    middle = len("\n".join(lines[:at])) + 20
    for part in (key[:middle], key[middle:], "\n".join(lines[at:]), "\n".join(lines[:at])):
        shown = Mask()(part)
        assert not [line for line in key_lines(key) if line in shown]
        rest = shown.replace("***", "").strip("-=\n").replace(" KEY", "").split()
        assert all(len(word) < 16 for word in rest), shown


def test_a_private_key_is_masked_where_a_line_breaks_off_in_python() -> None:
    key = pem()
    shown = Mask()(pprint.pformat({"key": key}))
    assert not [line for line in key_lines(key) if line in shown]


SPELLINGS = {
    "plain": str,
    "JSON": json.dumps,
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "JSON in UTF-8": lambda text: json.dumps(text, ensure_ascii=False),
    "Python": repr,
    "a shell": shlex.quote,
    "a URL": lambda text: urllib.parse.quote(text, safe=""),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(
    "secret", ["it's-hunter2", 'say "hunter2"', "back\\slash2", "é漢-hunter2", "a/b+c=hunter2"]
)
def test_a_value_that_was_learnt_is_masked_in_every_spelling(secret: str, spelling: str) -> None:
    mask = Mask()
    mask.learn([secret])
    shown = mask(f"before {SPELLINGS[spelling](secret)} after")
    assert "hunter2" not in shown and "slash2" not in shown
    assert shown.startswith("before ") and shown.endswith(" after")


def test_the_lines_of_a_value_that_was_learnt_are_masked_one_by_one() -> None:
    mask = Mask()
    lines = [draw(BASE64, 64, f"line{number}") for number in range(3)]
    for end in ("\n", "\r\n", "\\n"):
        mask.learn([end.join(lines)])
        for line in lines:
            assert mask(f"a {line} b") == "a *** b"


@pytest.mark.parametrize("length", [8, 12, 40, 300])
def test_a_part_of_a_value_that_was_learnt_is_masked_where_it_was_cut(length: int) -> None:
    secret = draw(ALNUM, length, "cut")
    mask = Mask()
    mask.learn([secret])
    for kept in range(min(8, length // 2), length):
        assert mask(f"the text ends with {secret[:kept]}") == "the text ends with ***"
        assert mask(f"{secret[-kept:]} begins it") == "*** begins it"
        assert mask(f"'{secret[:kept]}... (cut)") == "'***... (cut)"


def test_secrets_that_overlap_are_masked_together() -> None:
    mask = Mask()
    mask.learn(["abcdefgh", "efghijkl", "password"])
    assert mask("x abcdefghijkl y") == "x *** y"
    assert mask("db_password=hunter2zz") == "db_***=***"


@pytest.mark.parametrize(
    ("name", "value", "secrets"),
    [
        ("CONFIG", '{"db": {"password": "hunter2"}}', {"hunter2"}),
        ("CONFIG", '[{"a": "{\\"api_token\\": \\"tok-12345\\"}"}]', {"tok-12345"}),
        ("CONFIG", '"{\\"api_token\\": \\"tok-12345\\"}"', {"tok-12345"}),
        ("CONFIG", '{"credentials": {"user": "bobby", "ids": ["a1b2"]}}', {"bobby", "a1b2"}),
        ("CONFIG", '{"db": {"password": "hunter2"', {"hunter2"}),
        ("DSN", "Server=x;Password=hunter2;Encrypt=true", {"hunter2"}),
        ("OPTIONS", "--lr 0.1 --db-password hunter2 --x", {"hunter2"}),
        ("URL", "https://a.b/c?x=1&token=abcd1234", {"abcd1234"}),
        ("CONFIG", '{"lr": "0.1", "path": "/x", "token": 12345678, "password": null}', set()),
        ("DEEP", "[" * 100_000 + '"x"' + "]" * 100_000, set()),
    ],
)
def test_values_are_searched_for_secrets(name: str, value: str, secrets: set[str]) -> None:
    assert set(secrets_in(name, value)) == secrets


COUNT = 60_000
HOSTILE = {
    "one word": "a" * COUNT,
    "names": "key" * (COUNT // 3),
    "names and blanks": "password " * (COUNT // 9),
    "assignments": "password=" * (COUNT // 9),
    "colons": "password:" * (COUNT // 9),
    "quotes": "password='" * (COUNT // 10),
    "escaped quotes": 'password=\\"' * (COUNT // 11),
    "backslashes": 'password="' + "\\" * COUNT,
    "commas": "('password', " * (COUNT // 13),
    "options": "--password " * (COUNT // 11),
    "dots and dashes": "a.b-" * (COUNT // 4),
    "keys without an end": "-----BEGIN RSA " + "PRIVATE KEY-----\n" * (COUNT // 17),
    "beginnings of keys": ("-----BEGIN RSA " + "PRIVATE KEY-----\n") * (COUNT // 32),
    "ends of keys": ("-----END RSA " + "PRIVATE KEY-----\n") * (COUNT // 30),
    "base64 and an end": "A" * COUNT + "-----END RSA " + "PRIVATE KEY-----",
    "lines of base64": ("A1b" * 21 + "A\n") * (COUNT // 65),
    "schemes": "https://" * (COUNT // 8),
    "users": "https://a:" * (COUNT // 10),
    "hooks": "https://hooks/" * (COUNT // 14),
    "hooks in one": "https://a" + "/hook" * (COUNT // 5),
    "web tokens": "eyJ" * (COUNT // 3),
    "web tokens and dashes": "eyJ-" * (COUNT // 4),
    "OpenAI": "sk-" * (COUNT // 3),
    "SendGrid": "SG." * (COUNT // 3),
    "bearer": "bearer " * (COUNT // 7),
    "basic": "basic " * (COUNT // 6),
    "curl": "curl -u " * (COUNT // 8),
    "headers": "Authorization: " * (COUNT // 15),
    "line feeds": "\n" * COUNT,
    "every prefix": "ghp_ xoxb- AKIA eyJ hf_ npm_ pypi- key- SG. s. sl. t1. A3- Q~ "
    * (COUNT // 62),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_text_takes_no_longer_than_another(case: str) -> None:
    """What goes back over a text again and again takes minutes, not a tenth of a second."""
    mask = Mask()
    mask.learn(["aaaaaaaaaaaaaaaa", "password", pem()])
    began = time.thread_time()
    mask(HOSTILE[case])
    assert time.thread_time() - began < 3

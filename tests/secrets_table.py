"""Secrets of every shape that detect-secrets and gitleaks know, and ordinary text that is none.

No secret stands here, nor anything that a scanner takes for one: values are drawn when they are
needed, always the same ones.
"""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Mapping
from typing import Protocol

from tests.harness import Base

LOWER, DIGITS = string.ascii_lowercase, string.digits
UPPER, HEX = string.ascii_uppercase, DIGITS + "abcdef"
ALNUM, WORD = string.ascii_letters + DIGITS, string.ascii_letters + DIGITS + "_-"
BASE64 = string.ascii_letters + DIGITS + "+/"


def draw(alphabet: str, count: int, seed: str = "") -> str:
    """Return ``count`` characters, the same ones each time, with a letter and a digit."""
    source = random.Random(f"{alphabet}{count}{seed}")
    while True:
        found = "".join(source.choices(alphabet, k=count))
        if any(map(str.isdigit, found)) == any(map(str.isdigit, alphabet)) and found[-1].isalnum():
            return found


def uuid(seed: str = "") -> str:
    return "-".join(draw(HEX, count, f"uuid{seed}") for count in (8, 4, 4, 4, 12))


def _jwt() -> str:
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": "1234567890", "name": "John Doe"})
    texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in parts]
    return ".".join([*(text.rstrip("=") for text in texts), draw(WORD, 43)])


def pem(kind: str = "RSA ", lines: int = 12) -> str:
    """Return a private key, so called, of many lines."""
    title = f"{kind}PRIVATE KEY"
    body = "\n".join(draw(BASE64, 64, f"{kind}{number}") for number in range(lines))
    return f"-----BEGIN {title}-----\n{body}\n{draw(BASE64, 22, kind)}==\n-----END {title}-----\n"


def key_lines(key: str) -> list[str]:
    """Return the lines of a key that are secret."""
    return [line for line in key.splitlines() if "-----" not in line]


_PREFIXED: Mapping[str, tuple[str, str, int]] = {
    "AWS access key": ("AKIA", UPPER + "234567", 16),
    "AWS temporary key": ("ASIA", UPPER + "234567", 16),
    "AWS bearer key": ("ABIA", UPPER + "234567", 16),
    "AWS context key": ("ACCA", UPPER + "234567", 16),
    "AWS old key": ("A3TX", UPPER + "234567", 16),
    "AWS session token": ("IQoJb3JpZ2lu" + "X2VjE", BASE64, 300),
    "Bedrock": ("ABSK", BASE64, 120),
    "Artifactory token": ("AKC" + "p8", ALNUM, 68),
    "Artifactory reference": ("cmVm" + "d", ALNUM, 59),
    "Azure client secret": (draw(ALNUM, 3) + "8" + "Q~", ALNUM, 34),
    "GitHub personal": ("ghp" + "_", ALNUM, 36),
    "GitHub OAuth": ("gho" + "_", ALNUM, 36),
    "GitHub user": ("ghu" + "_", ALNUM, 36),
    "GitHub server": ("ghs" + "_", ALNUM, 36),
    "GitHub refresh": ("ghr" + "_", ALNUM, 36),
    "GitHub fine-grained": ("github_pat" + "_", ALNUM + "_", 82),
    "GitLab personal": ("glpat" + "-", WORD, 20),
    "GitLab deploy": ("gldt" + "-", WORD, 20),
    "GitLab feed": ("glft" + "-", WORD, 20),
    "GitLab SCIM": ("glsoat" + "-", WORD, 20),
    "GitLab runner": ("glrt" + "-", WORD, 20),
    "GitLab registration": ("GR13489" + "41", WORD, 20),
    "GitLab job": ("glcbt" + "-64_", WORD, 20),
    "GitLab mail": ("glimt" + "-", WORD, 25),
    "GitLab trigger": ("glptt" + "-", HEX, 40),
    "GitLab agent": ("glagent" + "-", WORD, 50),
    "GitLab application": ("gloas" + "-", HEX, 64),
    "Hugging Face": ("hf" + "_", string.ascii_letters, 34),
    "Hugging Face organization": ("api_org" + "_", string.ascii_letters, 34),
    "npm": ("npm" + "_", ALNUM, 36),
    "PyPI": ("pypi-AgEIcHlwa" + "S5vcmc", WORD, 150),
    "TestPyPI": ("pypi-AgENdGVzdC5w" + "eXBpLm9yZw", WORD, 150),
    "PyPI of another kind": ("pypi" + "-", ALNUM, 60),
    "OpenAI": ("sk" + "-", ALNUM, 48),
    "OpenAI project": ("sk-proj" + "-", ALNUM, 120),
    "Anthropic": ("sk-ant" + "-api03-", WORD, 95),
    "DeepSeek": ("sk" + "-", HEX, 32),
    "Groq": ("gsk" + "_", ALNUM, 52),
    "Replicate": ("r8" + "_", ALNUM, 37),
    "Perplexity": ("pplx" + "-", ALNUM, 48),
    "NVIDIA": ("nvapi" + "-", WORD, 64),
    "LangSmith": ("lsv2_pt" + "_", HEX + "_", 43),
    "xAI": ("xai" + "-", ALNUM, 80),
    "Google API": ("AIza" + "Sy", WORD, 33),
    "Google client": ("GOCSPX" + "-", WORD, 28),
    "Google access": ("ya29" + ".", WORD, 120),
    "Slack bot": ("xoxb" + "-123456789012-1234567890123-", ALNUM, 24),
    "Slack user": ("xoxp" + "-123456789012-123456789012-123456789012-", HEX, 32),
    "Slack app": ("xapp" + "-1-A0123456789-1234567890123-", HEX, 64),
    "Slack configuration": ("xoxe.xoxp" + "-1-", ALNUM, 160),
    "Stripe": ("sk_live" + "_", ALNUM, 24),
    "Stripe restricted": ("rk_live" + "_", ALNUM, 24),
    "Stripe webhook": ("whsec" + "_", ALNUM, 32),
    "Twilio": ("SK", HEX, 32),
    "Twilio account": ("AC", HEX, 32),
    "Mailgun": ("key" + "-", HEX, 32),
    "Square": ("sq0csp" + "-", WORD, 43),
    "Square access": ("sq0atp" + "-", WORD, 22),
    "Shopify": ("shpat" + "_", HEX, 32),
    "Shopify secret": ("shpss" + "_", HEX, 32),
    "DigitalOcean": ("dop_v1" + "_", HEX, 64),
    "Databricks": ("dapi", HEX, 32),
    "Dropbox": ("sl" + ".", WORD, 135),
    "Doppler": ("dp.pt" + ".", ALNUM, 43),
    "Dynatrace": ("dt0c01" + "." + draw(UPPER + DIGITS, 24) + ".", UPPER + DIGITS, 64),
    "EasyPost": ("EZAK", ALNUM, 54),
    "Fly": ("fo1" + "_", WORD, 43),
    "Grafana": ("glsa_" + draw(ALNUM, 32) + "_", HEX, 8),
    "Grafana cloud": ("glc" + "_", BASE64, 60),
    "Grafana key": ("eyJrIjoi", ALNUM, 80),
    "Heroku": ("HRKU-" + "AA", WORD, 58),
    "Linear": ("lin_api" + "_", ALNUM, 40),
    "Notion": ("ntn" + "_12345678901", ALNUM, 35),
    "New Relic": ("NRAK" + "-", UPPER + DIGITS, 27),
    "PlanetScale": ("pscale_tkn" + "_", WORD, 43),
    "Postman": ("PMAK" + "-" + draw(HEX, 24) + "-", HEX, 34),
    "Prefect": ("pnu" + "_", ALNUM, 36),
    "Pulumi": ("pul" + "-", HEX, 40),
    "ReadMe": ("rdme" + "_", LOWER + DIGITS, 70),
    "RubyGems": ("rubygems" + "_", HEX, 48),
    "Scalingo": ("tk-us" + "-", WORD, 48),
    "Sendinblue": ("xkeysib" + "-" + draw(HEX, 64) + "-", ALNUM, 16),
    "Sentry": ("sntryu" + "_", HEX, 64),
    "SettleMint": ("sm_pat" + "_", ALNUM, 16),
    "Shippo": ("shippo_live" + "_", HEX, 40),
    "Sourcegraph": ("sgp" + "_", HEX, 40),
    "Typeform": ("tfp" + "_", WORD, 59),
    "Vault": ("hvs" + ".", WORD, 95),
    "Vault, old": ("s" + ".", ALNUM, 24),
    "Yandex": ("AQVN", WORD, 38),
    "OpenShift": ("sha256" + "~", WORD, 43),
    "Alibaba": ("LTAI", ALNUM, 20),
    "Atlassian": ("ATATT3", WORD, 186),
    "Adobe": ("p8e" + "-", LOWER + DIGITS, 32),
    "age": ("AGE-SECRET-" + "KEY-1", UPPER + DIGITS, 58),
    "Clojars": ("CLOJARS" + "_", LOWER + DIGITS, 60),
    "Duffel": ("duffel_live" + "_", WORD, 43),
    "Facebook page": ("EAA" + "C", ALNUM, 120),
    "Flutterwave": ("FLWSECK_TEST" + "-", HEX, 32),
    "Frame.io": ("fio-u" + "-", WORD, 64),
    "Infracost": ("ico" + "-", ALNUM, 32),
    "Octopus": ("API" + "-", UPPER + DIGITS, 26),
    "1Password": ("ops_eyJ", BASE64, 250),
    "Terraform": (draw(ALNUM, 14) + ".atlas" + "v1.", WORD, 64),
    "ClickHouse": ("4b1" + "d", ALNUM, 38),
}
SHAPES: Mapping[str, str] = {
    **{name: begins + draw(*rest, name) for name, (begins, *rest) in _PREFIXED.items()},
    "JSON web token": _jwt(),
    "JSON web token in base64": base64.b64encode(_jwt().encode()).decode(),
    "SendGrid": f"SG.{draw(WORD, 22)}.{draw(WORD, 43)}",
    "Mailchimp": draw(HEX, 32, "mailchimp") + "-us12",
    "MaxMind": f"{draw(ALNUM, 6)}_{draw(ALNUM, 29)}_mmk",
    "Telegram": f"123456789:AA{draw(WORD, 33)}",
    "Discord": f"MTA{draw(ALNUM, 21)}.{draw(ALNUM, 6)}.{draw(WORD, 27)}",
    "Facebook": f"123456789012345|{draw(WORD, 27)}",
    "Harness": f"pat.{draw(WORD, 22)}.{draw(ALNUM, 24)}.{draw(ALNUM, 20)}",
    "Cloudflare": f"v1.0-{draw(HEX, 24)}-{draw(HEX, 146)}",
    "a private key in base64": base64.b64encode(pem().encode()).decode(),
}
"""Values that are known for secrets by themselves."""

ADDRESSES: Mapping[str, tuple[str, str]] = {
    "Slack": (
        "https://hooks.slack.com/services/",
        f"T{draw(UPPER + DIGITS, 8)}/B{draw(UPPER + DIGITS, 8)}/{draw(ALNUM, 24)}",
    ),
    "Slack without a scheme": ("hooks.slack.com/workflows/", draw(ALNUM, 44)),
    "Discord": ("https://discord.com/api/webhooks/", f"{draw(DIGITS, 18)}/{draw(WORD, 68)}"),
    "Teams": (
        "https://example.webhook.office.com/webhookb2/",
        f"{uuid('a')}@{uuid('b')}/IncomingWebhook/{draw(HEX, 32)}/{uuid('c')}",
    ),
    "Teams, old": ("https://outlook.office.com/webhook/", f"{uuid('a')}@{uuid('b')}"),
    "Mattermost": ("https://chat.example.com/hooks/", draw(LOWER + DIGITS, 26)),
    "Feishu": ("https://open.feishu.cn/open-apis/bot/v2/hook/", uuid("feishu")),
    "WeCom": ("https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=", uuid("wecom")),
    "DingTalk": ("https://oapi.dingtalk.com/robot/send?access_token=", draw(HEX, 64)),
    "Google Chat": (
        f"https://chat.googleapis.com/v1/spaces/AAAA/messages?key={draw(WORD, 39)}&token=",
        draw(WORD, 43),
    ),
    "Zapier": ("https://hooks.zapier.com/hooks/catch/", f"12345678/{draw(ALNUM, 7)}/"),
    "IFTTT": ("https://maker.ifttt.com/trigger/done/with/key/", draw(WORD, 22)),
    "PagerDuty": ("https://events.pagerduty.com/integration/", draw(HEX, 32)),
    "Telegram": ("https://api.telegram.org/bot", f"123456789:AA{draw(WORD, 33, 'bot')}"),
    "SoftLayer": ("https://api.softlayer.com/soap/v3/", draw(LOWER + DIGITS, 64)),
    "AWS, presigned": (
        "https://bucket.s3.eu-west-1.amazonaws.com/job.json?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Date=20240101T000000Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=",
        draw(HEX, 64, "sigv4"),
    ),
    "AWS, presigned with a token": (
        "https://bucket.s3.amazonaws.com/job.json?X-Amz-Security-Token=",
        "IQoJb3JpZ2lu" + draw(ALNUM, 300).replace("a", "%2F"),
    ),
    "AWS, presigned as of old": (
        "https://bucket.s3.amazonaws.com/job.json?Expires=1700000000&Signature=",
        draw(ALNUM, 12) + "%2B" + draw(ALNUM, 14) + "%3D",
    ),
    "CloudFront": (
        "https://d1.cloudfront.net/x?Key-Pair-Id=K1&Expires=1700000000&Signature=",
        draw(ALNUM + "~-", 344),
    ),
    "Google, signed": (
        "https://storage.googleapis.com/b/x?X-Goog-Expires=900&X-Goog-Signature=",
        draw(HEX, 512),
    ),
    "Azure, signed": (
        "https://account.blob.core.windows.net/c/b?sv=2022-11-02&sr=b&sp=r&sig=",
        draw(ALNUM, 20) + "%2F" + draw(ALNUM, 20) + "%3D",
    ),
    "Logic Apps": (
        "https://prod-01.westeurope.logic.azure.com/workflows/x/paths/invoke?sp=%2Frun&sig=",
        draw(WORD, 43),
    ),
    "a password": ("postgresql://user:", "p@ss-w0rd!x" + "@db.example.com:5432/x"),
    "a password without a user": ("redis://:", "hunter2hunter2" + "@cache:6379/0"),
    "a token for a user": ("https://", draw(HEX, 32, "dsn") + "@o1.ingest.sentry.io/1"),
    "a parameter": ("https://api.example.com/v1?user=me&api_key=", draw(LOWER, 20) + "&page=2"),
    "a second parameter": ("https://api.example.com/v1?page=2&password=", "hunter2zz"),
}
"""Addresses: what may be shown, and what may not."""
HIDDEN_OF_ADDRESS = {
    name: rest.partition("@" if "//user" in begins or "//:" in begins else "&")[0]
    for name, (begins, rest) in ADDRESSES.items()
}
HIDDEN_OF_ADDRESS["a password"] = "p@ss-w0rd!x"
HIDDEN_OF_ADDRESS["a token for a user"] = ADDRESSES["a token for a user"][1].partition("@")[0]

NAMED: Mapping[str, str] = {
    "db_password": "correct-horse",
    "dbPassword": "hunter2zz",
    "MYSQL_PWD": "hunter2zz",
    "admin_passwd": "correcthorse",
    "KEY_PASSPHRASE": "battery staple",
    "client_secret": "correcthorse",
    "aws_secret_access_key": draw(ALNUM + "+/", 40, "secret"),
    "AccountKey": draw(BASE64, 86, "account") + "==",
    "SharedAccessKey": draw(BASE64, 43, "shared") + "=",
    "api_key": draw(LOWER, 12, "api"),
    "apiKey": draw(HEX, 32, "apikey"),
    "WANDB_API_KEY": draw(HEX, 40, "wandb"),
    "private_key": draw(HEX, 64, "private"),
    "auth_token": draw(LOWER, 12, "auth"),
    "_authToken": uuid("npm"),
    "sonar.token": draw(HEX, 40, "sonar"),
    "x-api-key": draw(ALNUM, 40, "x"),
    "ibm_cloud_iam_api_key": draw(WORD, 44, "ibm"),
    "cos_hmac_secret_access_key": draw(HEX, 48, "cos"),
    "cl_key": draw(LOWER + DIGITS, 24, "cl"),
    "softlayer_key": draw(LOWER + DIGITS, 64, "sl"),
    "db_key": draw(HEX, 32, "db"),
    "service_key": draw(LOWER, 12, "service"),
    "session_cookie": draw(HEX, 32, "cookie"),
    "SENTRY_AUTH_TOKEN": draw(HEX, 64, "sentry"),
}
"""Values that are secret because of their names."""

ORDINARY = (
    "LaunchError: cannot start '/etc/passwd': Permission denied: '/etc/passwd'",
    '[Errno 2] No such file or directory: "/data/token": skipped',
    "learning_rate=0.001 batch_size=32 epochs=10",
    "{'learning_rate': 0.001, 'optimizer': 'adam', 'key': 'label'}",
    "--learning_rate 0.1 --key label --tokenizer bert-base-uncased",
    f"commit {draw(HEX, 40, 'git')}",
    f"git+https://github.com/org/repo@{draw(HEX, 40, 'git')}#egg=x",
    f"image@sha256:{draw(HEX, 64, 'digest')}",
    f"{{'etag': '{draw(HEX, 32, 'etag')}', 'version': '{draw(ALNUM, 32, 'version')}'}}",
    f"request id {uuid()}, key_id {uuid('key')}",
    f"run {uuid('run').upper()}",
    "s3://bucket/path/to/train/part-00001-of-00010.parquet",
    "https://bucket.s3.eu-west-1.amazonaws.com/models/resnet50-0676ba61.pth?versionId=3",
    "arn:aws:kms:eu-west-1:123456789012:key/" + uuid("kms"),
    "123456789012.dkr.ecr.eu-west-1.amazonaws.com/training:2.15.1-gpu-py310-cu121",
    "key=train/part-00001-of-00010.parquet",
    "aGVsbG8gd29ybGQ=",
    base64.b64encode(bytes(range(256))).decode(),
    '{"image": "' + base64.b64encode(b"\x89PNG" + bytes(range(100))).decode() + '"}',
    "model-00001-of-00002.safetensors events.out.tfevents.1700000000.algo-1.123.0.v2",
    "sk-learn-pipeline-v1 scikit-learn-1.4.0 sk-model-checkpoints-best-20240101",
    "hf_model_name_or_path hf_transformers_cache_directory",
    "npm_config_cache npm_package_version pypi-mirror-configuration-file",
    "key-value-store key-frame-extraction-2024 API-reference",
    "pad_token='<pad>' eos_token=</s> cls_token: '[CLS]' mask_token=\"[MASK]\"",
    "{'token': 'hello', 'label': 'B-PER'}",
    "KeyError: 'token'",
    "Unexpected token: LBRACE at line 3",
    "num_tokens=512 max_tokens: 4096 token_type_ids=[0, 0, 1] tokens per second: 1234.5",
    "Token indices sequence length is longer than 512",
    "['token', 'label'] not in index",
    "signature: serving_default, signature=serving_default",
    "signature_def['serving_default']",
    "Bearer authentication failed",
    "Basic authentication is not supported",
    "author: John Doe, authority=example.com:443",
    "password=None password: required secret=true",
    "def connect(host, password: Optional[str] = None):",
    "    connect(host, password=password, token=self.token, api_key=os.environ['API_KEY'])",
    "the password must have 8 characters; invalid password: must not be empty",
    "the secret: not found",
    "monkey=banana1234567890 keyboard=a1b2c3d4e5f6g7h8",
    "AWS_WEB_IDENTITY_TOKEN_FILE=/var/run/secrets/eks.amazonaws.com/serviceaccount/token",
    "HF_TOKEN_PATH=/root/.cache/huggingface/token",
    "SSH_AUTH_SOCK=/tmp/ssh-AbC/agent.12345",
    "http://host:8080/path?a=1 grpc://10.0.0.1:2222 mail bob@example.com",
    "https://github.com/pre-commit/pre-commit-hooks/tree/v4.5.0",
    "https://docs.example.com/webhooks/index.html",
    "/opt/ml/code/hooks/checkpoint_20240101.py",
    "sc_main.acc_top_1 pat.min sat.max s.split",
    "2024-01-01T12:00:00.123Z sm-runtime INFO    timeline: config 3 ms",
    '  File "/opt/ml/code/train.py", line 3, in get_token',
    "OOM when allocating tensor with shape[128,1024,1024] and type float by allocator GPU_0_bfc",
    '\n  File "/x.py", line 3, in f\n    token = get_token(password=secret.value)\nOSError: x',
    '\n  | File "/x.py", line 3, in f\n  |   token=tokens[0]',
    f"{{'KmsKeyId': '{uuid('kms')}', 'key_sha256': '{draw(HEX, 64, 'sum')}'}}",
    f"{{'KeyId': 'arn:aws:kms:eu-west-1:123456789012:key/{uuid('kms')}'}}",
    f"s3_key: {draw(LOWER, 8)}/{draw(LOWER, 9)}/part-0001 public_key={draw(BASE64, 43, 'public')}=",
    "[1,mpirank:0,algo-1]<stdout>:loss: 0.5",
    "CUDA_VISIBLE_DEVICES=0,1 NCCL_DEBUG=INFO LD_LIBRARY_PATH=/usr/local/cuda/lib64",
    "-----BEGIN CERTIFICATE-----\n" + draw(BASE64, 64) + "\n-----END CERTIFICATE-----",
    "ssh-rsa " + "AAAAB3NzaC1yc2E" + draw(BASE64, 357) + " me@host",
    "APPROXIMATELY APERIODICITY APARTMENTS APPLICATIONS ACCEPTANCE SKYSCRAPER",
    "pass 2 of 3: pass=first cookiecutter=https://example.com/template",
    "sort_key=created_at primary_key=user_id public_key_path=/x/y foreign_key: users.id",
)
"""What every text may have; it stays."""


# -- a script that shows its secrets, and where they are planted ---------------------------------


class Logged(Protocol):
    """What came of a job."""

    @property
    def log(self) -> str: ...


RAISES = """
import os, sys
how = os.environ["HOW"]
names = [name for name in os.environ if name.startswith(("THING", "ADDRESS", "CONFIG"))]
chosen = {name: os.environ[name] for name in names}
if how == "environment":
    raise ValueError(os.environ)
elif how == "arguments":
    raise RuntimeError("cannot run with", sys.argv)
elif how == "lines":
    raise KeyError("\\n".join(f"{name}: {value}" for name, value in chosen.items()))
elif how == "exit":
    sys.exit(f"bad settings: {chosen}")
elif how == "stdout":
    print(chosen)
    sys.exit(5)
elif how == "crash":
    print("what():", *chosen.values(), sep="\\n", file=sys.stderr)
    os.abort()
"""


def plant_everywhere(base: Base, values: Mapping[str, str]) -> None:
    """Put each value where people put one, under names that say nothing."""
    hyperparameters = {}
    for number, value in enumerate(values.values()):
        hyperparameters[f"thing_{number}"] = value
        hyperparameters[f"nested_{number}"] = json.dumps({"a": [{"b": value}]})
        base.environ[f"THING_{number}"] = value
        base.environ[f"ADDRESS_{number}"] = f"https://host.example.com/x?thing={value}&more=1"
        base.environ[f"CONFIG_{number}"] = json.dumps({"a": {"b": json.dumps([value])}})
    base.hyperparameters(**hyperparameters)


def own(result: Logged) -> str:
    return "\n".join(line for line in result.log.splitlines() if " sm-runtime " in line)


def assert_hidden(text: str, values: Mapping[str, str]) -> None:
    shown = [name for name, value in values.items() if value in text or value[-16:] in text]
    assert not shown, text[:4000]


def parts(values: Mapping[str, str], count: int) -> list[dict[str, str]]:
    pairs = list(values.items())
    return [dict(pairs[i::count]) for i in range(count)]


SHAPES_IN_PARTS = parts({name: value for name, value in SHAPES.items() if len(value) < 800}, 4)
HOWS = ["environment", "arguments", "lines", "exit", "stdout", "crash"]


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

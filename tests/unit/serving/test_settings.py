"""What the variables of SageMaker's serving images come to."""

import pytest

from sm_runtime.job.errors import ConfigError
from sm_runtime.serving import settings
from sm_runtime.serving.settings import REAL_TIME_BYTES, Batching, Settings


def test_without_variables_the_images_defaults_hold():
    assert settings.read({}, 4) == Settings()


@pytest.mark.parametrize(
    ("environ", "name", "value"),
    [
        ({"SAGEMAKER_BIND_TO_PORT": "8443"}, "port", 8443),
        ({"SAGEMAKER_SAFE_PORT_RANGE": "9000-9010"}, "rest_port", 9001),
        ({"SAGEMAKER_SAFE_PORT_RANGE": "9000-9010"}, "grpc_port", 9000),
        ({"SAGEMAKER_TFS_INSTANCE_COUNT": "2"}, "workers", 2),
        ({"SAGEMAKER_GUNICORN_WORKERS": "3"}, "workers", 3),
        (
            {"SAGEMAKER_GUNICORN_WORKERS": "3", "SAGEMAKER_MODEL_SERVER_WORKERS": "4"},
            "workers",
            4,
        ),
        ({"SAGEMAKER_GUNICORN_THREADS": "8"}, "threads", 8),
        ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "1"}, "max_body", REAL_TIME_BYTES),
        ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "100"}, "max_body", 100 * 2**20),
        ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "0"}, "max_body", None),
        ({"SAGEMAKER_BATCH": "true"}, "timeout", 600),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "120"}, "timeout", 120),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "2"}, "timeout", 120),
        ({"SAGEMAKER_GUNICORN_TIMEOUT_SECONDS": "30"}, "timeout", 30),
        ({"SAGEMAKER_NGINX_PROXY_READ_TIMEOUT_SECONDS": "90"}, "timeout", 90),
        (
            {
                "SAGEMAKER_GUNICORN_TIMEOUT_SECONDS": "30",
                "SAGEMAKER_NGINX_PROXY_READ_TIMEOUT_SECONDS": "90",
                "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "20",
            },
            "timeout",
            20,
        ),
        ({"SAGEMAKER_MULTI_MODEL": "True"}, "multi_model", True),
        ({"SAGEMAKER_MULTI_MODEL": "false"}, "multi_model", False),
        ({"SAGEMAKER_SERVING_MODULE": "m:app"}, "module", "m:app"),
        ({"SAGEMAKER_TFS_ENABLE_BATCHING": "true"}, "batching", Batching(max_waiting=8)),
        (
            {"SAGEMAKER_TFS_ENABLE_BATCHING": "true", "SAGEMAKER_BATCH": "true"},
            "batching",
            Batching(max_waiting=0),
        ),
        (
            {"SAGEMAKER_TFS_ENABLE_BATCHING": "true", "SAGEMAKER_TFS_MAX_BATCH_SIZE": "32"},
            "batching",
            Batching(max_rows=32, max_waiting=8),
        ),
    ],
)
def test_a_variable_of_the_images_is_followed(environ, name, value):
    assert getattr(settings.read(environ, 2), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SAGEMAKER_BIND_TO_PORT", "http"),
        ("SAGEMAKER_BIND_TO_PORT", "70000"),
        ("SAGEMAKER_SAFE_PORT_RANGE", "9000"),
        ("SAGEMAKER_SAFE_PORT_RANGE", "9010-9000"),
        ("SAGEMAKER_MODEL_SERVER_WORKERS", "0"),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "-1"),
        ("SAGEMAKER_TFS_ENABLE_BATCHING", "yes"),
        ("SAGEMAKER_MULTI_MODEL", "on"),
        ("SAGEMAKER_TFS_FRACTIONAL_GPU_MEM_MARGIN", "1.5"),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", "soon"),
    ],
)
def test_a_value_that_cannot_be_followed_is_named(name, value):
    with pytest.raises(ConfigError, match=f"environment: {name}: .*{value}"):
        settings.read({name: value}, 2)


def test_a_variable_for_a_program_that_is_not_here_is_named():
    found = settings.read({"SAGEMAKER_TFS_NGINX_LOGLEVEL": "info"}, 2)
    assert "SAGEMAKER_TFS_NGINX_LOGLEVEL" in found.warnings[0]

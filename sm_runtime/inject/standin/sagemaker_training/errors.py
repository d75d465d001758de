"""Exceptions. What a failed command says is in the form of SageMaker's toolkit."""

from __future__ import annotations

import re

_SECRET = re.compile(
    r"(--?[^\s=]*(?:key|token|secret|passw|credential)[^\s=]*[= ])('[^']*'|\S+)", re.IGNORECASE
)


class ClientError(Exception):
    """An error that is the user's."""


class SMTrainingCompilerConfigurationError(Exception):
    """A configuration that SageMaker's compiler refuses; raised by nothing here."""


class _CalledProcessError(ClientError):
    """A command failed: ``cmd``, ``return_code`` (text), ``output`` (its last standard error)."""

    def __init__(
        self,
        cmd: object,
        return_code: object = None,
        output: str | bytes | None = None,
        info: str | None = None,
    ) -> None:
        self.cmd = cmd
        self.return_code = str(return_code)
        self.output = output
        self.extra_info = info
        super().__init__()

    def __str__(self) -> str:
        output = self.output or ""
        if isinstance(output, bytes):
            output = output.decode("utf-8", "replace")
        lines = [f"{type(self).__name__}:", f"ExitCode {self.return_code}"]
        lines.append(f'ErrorMessage "{output}"')
        if self.extra_info is not None:
            lines.append(f'ExtraInfo "{self.extra_info}"')
        lines.append(f'Command "{without_secrets(str(self.cmd))}"')
        return "\n".join(lines)


class InstallModuleError(_CalledProcessError):
    """The user's package could not be installed."""


class InstallRequirementsError(_CalledProcessError):
    """What ``requirements.txt`` asks for could not be installed."""


class ImportModuleError(ClientError):
    """The user's module could not be imported."""


class ExecuteUserScriptError(_CalledProcessError):
    """The user's script failed."""


class ChannelDoesNotExistError(Exception):
    """The job has no such channel."""

    def __init__(self, channel_name: str) -> None:
        super().__init__(f"Channel {channel_name} is not a valid channel")


ChannelDoesNotExistException = ChannelDoesNotExistError
"""Its name in ``sagemaker_containers``."""


class UnsupportedFormatError(Exception):
    """Nothing encodes or decodes this content type."""

    def __init__(self, content_type: str) -> None:
        self.message = (
            f"Content type {content_type} is not supported by this framework: implement input_fn"
            " to deserialize the request, or output_fn to serialize the response"
        )
        super().__init__(self.message)


def without_secrets(command: str) -> str:
    """Return a command line without the values of options that are called like secrets."""
    return _SECRET.sub(r"\1****", command)

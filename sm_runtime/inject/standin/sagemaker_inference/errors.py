"""Errors that handlers raise: ``status_code`` is that of the answer."""


class UnsupportedFormatError(Exception):
    """A content type is not supported."""

    status_code = 415

    def __init__(self, content_type: str, **_: object) -> None:
        super().__init__(
            f"Content type {content_type} is not supported: implement input_fn to deserialize the"
            " request, or output_fn to serialize the response"
        )


class BaseInferenceToolkitError(Exception):
    """What handlers extend to say the status of an answer."""

    def __init__(self, status_code: int, message: str, phrase: str) -> None:
        self.status_code = status_code
        self.message = message
        self.phrase = phrase
        super().__init__(status_code, message, phrase)


class GenericInferenceToolkitError(BaseInferenceToolkitError):
    """A status and a message for the client."""

    def __init__(
        self, status_code: int, message: "str | None" = None, phrase: "str | None" = None
    ) -> None:
        message = message or "Invalid Request"
        super().__init__(status_code, message, phrase or message)

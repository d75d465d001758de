"""What does the toolkit's work where a script defines no function of its own."""

from typing import Any

from . import decoder, encoder, errors, utils


class DefaultInferenceHandler:
    """The toolkit's functions, for scripts that extend or call them."""

    def default_model_fn(self, model_dir: str, context: Any = None) -> Any:
        """Raise NotImplementedError: a script loads its own model."""
        raise NotImplementedError("define model_fn(model_dir)")

    def default_input_fn(self, input_data: Any, content_type: str, context: Any = None) -> Any:
        """Return the array in a body."""
        return decoder.decode(input_data, content_type)

    def default_predict_fn(self, data: Any, model: Any, context: Any = None) -> Any:
        """Raise NotImplementedError: a script asks its own model."""
        raise NotImplementedError("define predict_fn(data, model)")

    def default_output_fn(self, prediction: Any, accept: str, context: Any = None) -> Any:
        """Return a body and its type: the first of ``accept`` that can be written."""
        for content_type in utils.parse_accept(accept):
            if content_type in encoder.SUPPORTED_CONTENT_TYPES:
                return encoder.encode(prediction, content_type), content_type
        raise errors.UnsupportedFormatError(accept)

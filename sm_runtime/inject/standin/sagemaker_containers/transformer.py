"""Serves models in the package that this one stands for."""

from .refused import refused

Transformer = refused("transformer.Transformer")
default_model_fn = refused("transformer.default_model_fn")
default_input_fn = refused("transformer.default_input_fn")
default_predict_fn = refused("transformer.default_predict_fn")
default_output_fn = refused("transformer.default_output_fn")

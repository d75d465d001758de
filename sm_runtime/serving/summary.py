"""What would be served of a model folder, as lines for people: ``sm-runtime check --model``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from sm_runtime.serving.layout import Layout, ModelFiles, Version
from sm_runtime.serving.model_files import SavedModel, default_signature
from sm_runtime.serving.signature import example_text
from sm_runtime.serving.values import Signature, TensorSpec


def lines(layout: Layout) -> list[str]:
    """Return models, versions, signatures, a body that the default one takes, and notes."""
    found = [line for model in layout.models.values() for line in _model(layout, model)]
    if not layout.models and (code := _own_code(layout)):
        found.append(f"no model of TensorFlow or Keras; {code} has to load what it serves")
    return [*found, *_body(layout), *(f"note: {note}" for note in layout.notes)]


def problems(layout: Layout) -> list[str]:
    """Return a sentence for each thing that must be mended before the folder can be served."""
    if not layout.problems and not layout.models and not _own_code(layout):
        return [layout.nothing()]
    return list(layout.problems)


def shown(spec: TensorSpec) -> str:
    """Return dtype and shape for people: ``float32 [?, 28, 28, 1]``."""
    if spec.shape is None:
        return f"{spec.dtype} of any shape"
    return f"{spec.dtype} {axes(spec.shape)}"


def axes(shape: Sequence[int | None]) -> str:
    """Return a shape for people: ``[?, 28, 28, 1]``."""
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _model(layout: Layout, model: ModelFiles) -> Iterator[str]:
    default = ", the default" if model.name == layout.default_name else ""
    yield f"model {model.name}{default}"
    for version in reversed([*model.versions.values()]):
        yield f"  version {version.number}: {version.path} ({_kind(version)})"
        if isinstance(version.content, SavedModel):
            for signature in version.content.signatures.values():
                yield f"    {_signature(signature)}"
            if not version.content.signatures:
                yield f"    no signature; its function {version.content.functions[0]} is called"


def _kind(version: Version) -> str:
    if version.content is None:
        return "it cannot be served"
    if isinstance(version.content, SavedModel):
        by = version.content.tensorflow_version
        return f"SavedModel of TensorFlow {by}" if by else "SavedModel"
    by = version.content.keras_version
    return f"file of Keras {by}" if by else "Keras file"


def _signature(signature: Signature) -> str:
    inputs, outputs = (
        ", ".join(f"{spec.name} {shown(spec)}" for spec in specs.values()) or "nothing"
        for specs in (signature.inputs, signature.outputs)
    )
    return f"{signature.name} ({signature.method}): {inputs} -> {outputs}"


def _body(layout: Layout) -> list[str]:
    if not layout.models:
        return []
    content = layout.models[layout.default_name].highest.content
    if not isinstance(content, SavedModel) or not content.signatures:
        return []
    signature = content.signatures[default_signature(content.signatures)]
    return [f"a body for {signature.name}: {example_text(signature)}"]


def _own_code(layout: Layout) -> str:
    """Return a Python file of the model's code folder, the handlers' first; nothing without one."""
    try:
        names = sorted(os.listdir(os.path.join(layout.folder, "code")))
    except OSError:
        return ""
    python = [name for name in names if name.endswith(".py")]
    if "inference.py" in python:
        return "code/inference.py"
    return f"code/{python[0]}" if python else ""

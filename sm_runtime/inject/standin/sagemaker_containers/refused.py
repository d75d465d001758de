"""Names that can be imported, and refuse to work."""

from __future__ import annotations

from typing import Any

_SERVES = (
    "sagemaker_containers.beta.framework.{} serves models; sm_runtime trains only: an image for"
    " inference needs sagemaker-inference, or sagemaker-containers itself"
)


def refused(name: str, why: str = _SERVES) -> Any:
    """Return what stands for a class or a function: to call it raises NotImplementedError."""

    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError(why.format(name))

    text = "Refuses to work: see ``refused``."
    return type(name.rpartition(".")[2], (), {"__doc__": text, "__init__": refuse})

"""``PipeModeDataset`` for any TensorFlow, in place of the package of the same name with its C++ op.

TensorFlow is imported when the dataset is.
"""

__all__ = ["PipeModeDataset", "PipeModeDatasetException"]


def __getattr__(name):
    if name == "PipeModeDataset":
        from sagemaker_tensorflow.pipemode import PipeModeDataset

        return PipeModeDataset
    if name == "PipeModeDatasetException":
        from sm_runtime.pipe_mode import PipeModeDatasetException

        return PipeModeDatasetException
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

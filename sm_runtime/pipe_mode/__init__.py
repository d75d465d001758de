"""Reads the FIFOs of a Pipe channel; TensorFlow is not needed here (see ``sagemaker_tensorflow``).

``settings`` knows the channels, ``epochs`` which FIFO is next, ``fifo`` its bytes, ``framing``
where records begin and end. ``cutting`` puts these together for scripts (``records``, and
``sm_runtime.records`` without the count of epochs), ``stream`` for TensorFlow.
"""

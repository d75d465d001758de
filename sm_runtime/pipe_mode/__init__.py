"""Reads the FIFOs of a Pipe channel; TensorFlow is not needed here (see ``sagemaker_tensorflow``).

``settings`` knows the channels, ``epochs`` which FIFO is next, ``fifo`` its bytes, ``framing``
where records end, ``stream`` puts these together, and ``records`` is what scripts call.
"""

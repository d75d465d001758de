"""What the hosts of a job agree on, and what each of them does about it.

How one process is supervised is in ``processes``; what is started is decided in ``launch``.
"""

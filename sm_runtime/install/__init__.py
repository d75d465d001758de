"""Installs with pip what the user's code asks for.

What the runtime itself needs is not its business.
"""

OWN_NAME = "sm-runtime"
"""The name of this package, as pip knows it."""

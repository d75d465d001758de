"""Installs with pip what the user's code asks for.

What the runtime itself needs is not its business.
"""

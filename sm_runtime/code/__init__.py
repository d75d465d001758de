"""The user's code: found, fetched, unpacked, and how its program is run.

What it needs is installed by ``install``.
"""

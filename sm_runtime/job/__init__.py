"""The values of a job: read once, frozen, passed on.

Nothing here opens a file, starts a process or knows an AWS spelling.
"""

"""What a job leaves at its end: artifacts, and the files that say how it ended.

What is synced while it runs is in ``sync``.
"""

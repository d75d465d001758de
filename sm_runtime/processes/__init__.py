"""The processes of one host: started, supervised, relayed, ended.

What several hosts agree on is in ``cluster``.
"""

"""What platforms and people say about a job: files, requests, variables, ``SM_*``.

Every AWS spelling is here; nothing is run here.
"""

"""A job for an engine that starts containers: a request becomes Kubernetes manifests.

``asked`` is what the manifests are made of, and what is wrong with it; ``manifests`` builds them;
``command`` is `sm-runtime export`. Nothing here talks to a cluster, and nothing runs in one.
"""

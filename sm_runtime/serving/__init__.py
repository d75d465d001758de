"""Answers requests with a trained model: what the command ``serve`` runs.

A front process (no TensorFlow) speaks HTTP and keeps worker processes; a worker holds the models
and the user's handlers. Nothing here trains, and nothing that trains imports this.
"""

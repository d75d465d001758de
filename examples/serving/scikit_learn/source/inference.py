"""Serve the classifier: rows of pixels in, digits and their probabilities out.

There is no ``input_fn``: JSON, CSV and npy are read by the server.
"""

import os

import joblib


def model_fn(model_dir):
    return joblib.load(os.path.join(model_dir, "model.joblib"))


def predict_fn(rows, model):
    probabilities = model.predict_proba(rows)
    return {
        "digits": model.classes_[probabilities.argmax(axis=1)].tolist(),
        "probabilities": probabilities.max(axis=1).tolist(),
    }

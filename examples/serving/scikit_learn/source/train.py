"""Fit a classifier of handwritten digits; leave it, and the code that serves it, as the model."""

import argparse
import os
import shutil

import joblib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--regularization", type=float, default=0.1)
    args = parser.parse_args()
    model_dir, output_dir = os.environ["SM_MODEL_DIR"], os.environ["SM_OUTPUT_DATA_DIR"]

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.2, random_state=1, stratify=labels)
    images, unseen, labels, expected = split
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=args.regularization, max_iter=1000)
    ).fit(images, labels)
    print(f"accuracy: {model.score(unseen, expected):.4f}")

    joblib.dump(model, os.path.join(model_dir, "model.joblib"))
    code = os.path.join(model_dir, "code")
    os.makedirs(code, exist_ok=True)
    shutil.copy(os.path.join(os.path.dirname(__file__), "inference.py"), code)
    # What to ask the server, and what the answers should be.
    os.makedirs(output_dir, exist_ok=True)
    np.savetxt(os.path.join(output_dir, "rows.csv"), unseen, "%d", delimiter=",")
    np.savetxt(os.path.join(output_dir, "labels.csv"), expected, "%d")


if __name__ == "__main__":
    main()

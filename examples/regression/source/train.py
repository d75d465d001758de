"""Fit a small network to a table with an eager ``GradientTape`` loop.

Channels ``training`` and ``validation`` hold CSV files: a row of names, then numbers; the last
column is what is predicted. The model is saved as a SavedModel in ``$SM_MODEL_DIR/1``: it takes
the columns as they stand in the files, the scaling is part of it.
"""

import argparse
import glob
import json
import os

import numpy as np
import tensorflow as tf


class Regressor(tf.Module):
    """Two layers, with the scaling of inputs and target that the training data asks for."""

    def __init__(self, features, target, hidden):
        super().__init__()
        self.mean = tf.constant(features.mean(axis=0), tf.float32)
        self.deviation = tf.constant(features.std(axis=0) + 1e-6, tf.float32)
        self.target_mean = tf.constant(target.mean(), tf.float32)
        self.target_deviation = tf.constant(target.std() + 1e-6, tf.float32)
        width = features.shape[1]
        self.weights_in = tf.Variable(tf.random.normal([width, hidden], stddev=width**-0.5))
        self.bias_in = tf.Variable(tf.zeros([hidden]))
        self.weights_out = tf.Variable(tf.random.normal([hidden, 1], stddev=hidden**-0.5))
        self.bias_out = tf.Variable(tf.zeros([1]))

    def __call__(self, features):
        scaled = (features - self.mean) / self.deviation
        hidden = tf.nn.relu(scaled @ self.weights_in + self.bias_in)
        out = tf.squeeze(hidden @ self.weights_out + self.bias_out, axis=1)
        return out * self.target_deviation + self.target_mean


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.005)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model_dir", help="where a hosted job keeps checkpoints; not used here")
    parser.add_argument("--training", default=os.environ.get("SM_CHANNEL_TRAINING"))
    parser.add_argument("--validation", default=os.environ.get("SM_CHANNEL_VALIDATION"))
    parser.add_argument("--sm-model-dir", default=os.environ.get("SM_MODEL_DIR"))
    parser.add_argument("--output-data-dir", default=os.environ.get("SM_OUTPUT_DATA_DIR"))
    return parser.parse_args()


def load(folder):
    files = sorted(glob.glob(os.path.join(glob.escape(folder), "*.csv")))
    if not files:
        raise SystemExit(f"no *.csv file in {folder}")
    rows = [np.loadtxt(name, delimiter=",", skiprows=1, ndmin=2, dtype="float32") for name in files]
    table = np.concatenate(rows)
    return table[:, :-1], table[:, -1]


def rmse(predicted, target):
    return float(np.sqrt(np.mean((np.asarray(predicted) - target) ** 2)))


def train(model, features, target, args):
    """Run Adam by hand, one batch after another; yields the mean squared error of each epoch."""
    optimizer = tf.keras.optimizers.Adam(args.learning_rate)
    batches = tf.data.Dataset.from_tensor_slices((features, target))
    batches = batches.shuffle(len(target), seed=args.seed).batch(args.batch_size)
    scale = model.target_deviation
    for _ in range(args.epochs):
        losses = []
        for inputs, wanted in batches:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(((model(inputs) - wanted) / scale) ** 2)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            losses.append(float(loss))
        yield float(np.mean(losses))


def main():
    args = arguments()
    tf.keras.utils.set_random_seed(args.seed)
    features, target = load(args.training)
    held_features, held_target = load(args.validation)
    print(f"{len(target)} rows to train on, {len(held_target)} to validate with", flush=True)

    model = Regressor(features, target, args.hidden)
    for epoch, loss in enumerate(train(model, features, target, args), start=1):
        if epoch % 10 == 0 or epoch == args.epochs:
            now = rmse(model(held_features), held_target)
            print(f"epoch {epoch} - loss: {loss:.4f} - val_rmse: {now:.4f}", flush=True)

    metrics = {
        "val_rmse": rmse(model(held_features), held_target),
        "baseline_rmse": rmse(np.full_like(held_target, target.mean()), held_target),
    }
    serve = tf.function(lambda features: {"predictions": model(features)})
    row = tf.TensorSpec([None, features.shape[1]], tf.float32, name="features")
    model.serve = serve
    tf.saved_model.save(
        model,
        os.path.join(args.sm_model_dir, "1"),
        signatures={"serving_default": serve.get_concrete_function(features=row)},
    )
    os.makedirs(args.output_data_dir, exist_ok=True)
    with open(os.path.join(args.output_data_dir, "metrics.json"), "w") as file:
        json.dump(metrics, file)
    for name, value in metrics.items():
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()

"""Train a small convolutional network on Fashion-MNIST with MultiWorkerMirroredStrategy.

Each host runs this script once; TensorFlow finds the others in ``TF_CONFIG``, which the runtime
sets. ``--batch-size`` is that of all hosts together. Channels ``training`` and ``validation`` hold
``data.npz`` each, as examples/fashion_mnist/prepare_data.py makes them. The first host saves the
model.
"""

import argparse
import json
import os
import tempfile

import numpy as np
import tensorflow as tf

# Before anything else of TensorFlow's: it starts this host's server.
STRATEGY = tf.distribute.MultiWorkerMirroredStrategy()


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps-per-epoch", type=int, help="default: all images")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model_dir", help="where a hosted job keeps checkpoints; not used here")
    parser.add_argument("--training", default=os.environ.get("SM_CHANNEL_TRAINING"))
    parser.add_argument("--validation", default=os.environ.get("SM_CHANNEL_VALIDATION"))
    parser.add_argument("--sm-model-dir", default=os.environ.get("SM_MODEL_DIR"))
    parser.add_argument("--output-data-dir", default=os.environ.get("SM_OUTPUT_DATA_DIR"))
    return parser.parse_args()


def load(folder):
    with np.load(os.path.join(folder, "data.npz")) as arrays:
        return arrays["images"][..., np.newaxis], arrays["labels"].astype("int64")


def dataset(arrays, batch_size):
    """Return batches of all hosts together, of which each host takes its part."""
    options = tf.data.Options()
    # There is one file: the images are what is divided among the hosts.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    found = tf.data.Dataset.from_tensor_slices(arrays)
    return found.batch(batch_size, drop_remainder=True).with_options(options)


def build(learning_rate):
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            tf.keras.Input(shape=(28, 28, 1), name="images"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(
        optimizer=tf.keras.optimizers.Adam(learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def main():
    args = arguments()
    resolver = STRATEGY.cluster_resolver
    leads = resolver.task_id in (None, 0)
    tf.keras.utils.set_random_seed(args.seed)
    with STRATEGY.scope():
        model = build(args.learning_rate)
    replicas = STRATEGY.num_replicas_in_sync
    print(f"worker {resolver.task_id} of {replicas} on {os.environ['SM_CURRENT_HOST']}", flush=True)

    history = model.fit(
        dataset(load(args.training), args.batch_size).repeat(),
        epochs=args.epochs,
        steps_per_epoch=args.steps_per_epoch or 60_000 // args.batch_size,
        validation_data=dataset(load(args.validation), 1000),
        verbose=2 if leads else 0,
    ).history
    tf.keras.utils.disable_interactive_logging()
    with tempfile.TemporaryDirectory() as scratch:
        # All hosts take part in saving; what the first one writes is the model.
        model.export(os.path.join(args.sm_model_dir if leads else scratch, "1"))
    if leads:
        os.makedirs(args.output_data_dir, exist_ok=True)
        metrics = {key: float(values[-1]) for key, values in history.items()}
        with open(os.path.join(args.output_data_dir, "metrics.json"), "w") as file:
            json.dump(metrics, file)
        for name, value in metrics.items():
            print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()

"""Train a small convolutional network on Fashion-MNIST with MultiWorkerMirroredStrategy.

Each host runs this script once; TensorFlow finds the others in ``TF_CONFIG``, which the runtime
sets. ``--batch-size`` is that of all hosts together. Channels ``training`` and ``validation`` hold
``data.npz`` each, as examples/fashion_mnist/prepare_data.py makes them. The first host validates
and saves the model. The loop is written out, as the ``fit`` of Keras 3 fails with this strategy.
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


def build():
    layers = tf.keras.layers
    return tf.keras.Sequential(
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


def trainer(model, optimizer, batch_size):
    """Return a function that takes the next batch from an iterator and returns the mean loss."""

    def step(images, labels):
        with tf.GradientTape() as tape:
            found = model(images, training=True)
            losses = tf.keras.losses.sparse_categorical_crossentropy(labels, found)
            loss = tf.nn.compute_average_loss(losses, global_batch_size=batch_size)
        gradients = tape.gradient(loss, model.trainable_variables)
        # The optimizer sums the gradients of all hosts.
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    @tf.function
    def train(batches):
        parts = STRATEGY.run(step, args=next(batches))
        return STRATEGY.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None)

    return train


def accuracy(model, arrays, batch_size=1000):
    batches = tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size)
    right = [
        tf.reduce_sum(tf.cast(tf.argmax(model(images), axis=1) == labels, tf.int32))
        for images, labels in batches
    ]
    return float(sum(right)) / len(arrays[1])


def main():
    args = arguments()
    task = STRATEGY.cluster_resolver.task_id or 0  # None where there is no other host
    leads = task == 0
    tf.keras.utils.set_random_seed(args.seed)
    with STRATEGY.scope():
        model = build()
        optimizer = tf.keras.optimizers.Adam(args.learning_rate)
        optimizer.build(model.trainable_variables)
    replicas = STRATEGY.num_replicas_in_sync
    print(f"worker {task} of {replicas} on {os.environ['SM_CURRENT_HOST']}", flush=True)

    train = trainer(model, optimizer, args.batch_size)
    batches = dataset(load(args.training), args.batch_size).repeat()
    batches = iter(STRATEGY.experimental_distribute_dataset(batches))
    metrics = {}
    for epoch in range(args.epochs):
        steps = args.steps_per_epoch or 60_000 // args.batch_size
        losses = [float(train(batches)) for _ in range(steps)]
        if leads:
            metrics["loss"] = float(np.mean(losses))
            metrics["val_accuracy"] = accuracy(model, load(args.validation))
            said = " - ".join(f"{name}: {value:.4f}" for name, value in metrics.items())
            print(f"epoch {epoch + 1} - {said}", flush=True)

    tf.keras.utils.disable_interactive_logging()  # the export lists every variable
    with tempfile.TemporaryDirectory() as scratch:
        # All hosts take part in saving; what the first one writes is the model.
        model.export(os.path.join(args.sm_model_dir if leads else scratch, "1"))
    if leads:
        os.makedirs(args.output_data_dir, exist_ok=True)
        with open(os.path.join(args.output_data_dir, "metrics.json"), "w") as file:
            json.dump(metrics, file)


if __name__ == "__main__":
    main()

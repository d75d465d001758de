"""Train a small convolutional network on Fashion-MNIST with Horovod, one process per rank.

``--batch-size`` is that of all ranks together, and each batch is divided among them: any number of
ranks takes the same steps as a single process. Channels ``training`` and ``validation`` hold
``data.npz`` each, as examples/fashion_mnist/prepare_data.py makes them. A stop request (SIGTERM) on
any host ends the training of all ranks after the same batch; rank 0 saves the model.
"""

import argparse
import json
import os
import signal

import horovod.tensorflow.keras as hvd
import numpy as np
import tensorflow as tf


class StopTogether(tf.keras.callbacks.Callback):
    """Ends ``fit`` on all ranks after the same batch, once SIGTERM has come to one of them."""

    def __init__(self, every=10):
        super().__init__()
        self.asked = False
        self.every = every
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, signum, frame):
        self.asked = True

    def on_train_batch_end(self, batch, logs=None):
        # A rank that stopped alone would leave the others waiting for its gradients.
        if batch % self.every == 0 and hvd.allreduce(float(self.asked), name="stop") > 0:
            self.model.stop_training = True


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


def shares(images, labels, args):
    """Yield this rank's part of each batch of all ranks, in an order that all ranks know."""
    part = args.batch_size // hvd.size()
    order = np.random.default_rng(args.seed)
    for _ in range(args.epochs):
        shuffled = order.permutation(len(images))
        for batch in range(args.steps_per_epoch):
            start = batch * args.batch_size + hvd.rank() * part
            chosen = shuffled[start : start + part]
            yield images[chosen], labels[chosen]


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
        optimizer=hvd.DistributedOptimizer(tf.keras.optimizers.Adam(learning_rate)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def main():
    args = arguments()
    hvd.init()
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        tf.config.set_visible_devices(gpus[hvd.local_rank()], "GPU")
    if args.batch_size % hvd.size():
        raise SystemExit(f"--batch-size {args.batch_size} does not divide among {hvd.size()} ranks")
    tf.keras.utils.set_random_seed(args.seed)
    model = build(args.learning_rate)
    images, labels = load(args.training)
    args.steps_per_epoch = args.steps_per_epoch or len(images) // args.batch_size
    batches = tf.data.Dataset.from_generator(
        lambda: shares(images, labels, args),
        output_signature=(
            tf.TensorSpec((None, 28, 28, 1), tf.uint8),
            tf.TensorSpec((None,), tf.int64),
        ),
    )
    print(f"rank {hvd.rank()} of {hvd.size()} on {os.environ['SM_CURRENT_HOST']}", flush=True)

    history = model.fit(
        batches,
        epochs=args.epochs,
        steps_per_epoch=args.steps_per_epoch,
        callbacks=[
            hvd.callbacks.BroadcastGlobalVariablesCallback(0),
            hvd.callbacks.MetricAverageCallback(),
            StopTogether(),
        ],
        verbose=2 if hvd.rank() == 0 else 0,
    ).history
    if hvd.rank() == 0:
        loss, accuracy = model.evaluate(*load(args.validation), batch_size=1000, verbose=0)
        metrics = {"loss": history["loss"][-1], "val_loss": loss, "val_accuracy": accuracy}
        tf.keras.utils.disable_interactive_logging()  # the export lists every variable
        model.export(os.path.join(args.sm_model_dir, "1"))
        os.makedirs(args.output_data_dir, exist_ok=True)
        with open(os.path.join(args.output_data_dir, "metrics.json"), "w") as file:
            json.dump({key: float(value) for key, value in metrics.items()}, file)
        for name, value in metrics.items():
            print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()

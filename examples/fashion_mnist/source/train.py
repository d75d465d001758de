"""Train a small convolutional network on Fashion-MNIST, as a script-mode job does it.

Channels ``training`` and ``validation`` hold ``data.npz`` each: ``images`` (uint8, N x 28 x 28) and
``labels`` (uint8, N). The model is saved as a SavedModel in ``$SM_MODEL_DIR/1``; its input is the
raw pixels. A stop request (SIGTERM) ends the training early: the model is saved as it is then.
"""

import argparse
import json
import os
import signal

import numpy as np
import tensorflow as tf


class StopOnSignal(tf.keras.callbacks.Callback):
    """Ends ``fit`` after the current batch once SIGTERM has come."""

    def __init__(self):
        super().__init__()
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, signum, frame):
        self.asked = True

    def on_train_batch_end(self, batch, logs=None):
        if self.asked:
            self.model.stop_training = True


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model_dir", help="where a hosted job keeps checkpoints; not used here")
    parser.add_argument("--training", default=os.environ.get("SM_CHANNEL_TRAINING"))
    parser.add_argument("--validation", default=os.environ.get("SM_CHANNEL_VALIDATION"))
    parser.add_argument("--sm-model-dir", default=os.environ.get("SM_MODEL_DIR"))
    parser.add_argument("--output-data-dir", default=os.environ.get("SM_OUTPUT_DATA_DIR"))
    parser.add_argument("--gpus", type=int, default=os.environ.get("SM_NUM_GPUS", "0"))
    return parser.parse_args()


def load(folder):
    with np.load(os.path.join(folder, "data.npz")) as arrays:
        return arrays["images"][..., np.newaxis], arrays["labels"].astype("int64")


def build(learning_rate):
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            tf.keras.Input(shape=(28, 28, 1), name="images"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
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
    tf.keras.utils.set_random_seed(args.seed)
    strategy = tf.distribute.MirroredStrategy() if args.gpus > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        model = build(args.learning_rate)
    images, labels = load(args.training)
    validation = load(args.validation)
    print(f"{len(images)} images to train on, {len(validation[0])} to validate with", flush=True)

    stop = StopOnSignal()
    history = model.fit(
        images,
        labels,
        batch_size=args.batch_size,
        epochs=args.epochs,
        validation_data=validation,
        callbacks=[stop],
        verbose=2,
    ).history
    if stop.asked:
        print("stopped early: the model is saved as it is now", flush=True)

    tf.keras.utils.disable_interactive_logging()  # the export lists every variable
    model.export(os.path.join(args.sm_model_dir, "1"))
    os.makedirs(args.output_data_dir, exist_ok=True)
    with open(os.path.join(args.output_data_dir, "history.json"), "w") as file:
        json.dump(
            {key: [float(value) for value in values] for key, values in history.items()}, file
        )
    print(f"val_loss: {history['val_loss'][-1]:.4f}")
    print(f"val_accuracy: {history['val_accuracy'][-1]:.4f}")


if __name__ == "__main__":
    main()

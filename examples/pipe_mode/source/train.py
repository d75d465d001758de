"""Train on Fashion-MNIST that is streamed: both channels are TFRecords in Pipe mode.

Every pass over a channel is one epoch of it, that is one FIFO. A record is a ``tf.train.Example``
with ``image`` (784 bytes) and ``label``. The model is saved in ``$SM_MODEL_DIR/1``.
"""

import argparse
import json
import os

import tensorflow as tf

from sagemaker_tensorflow import PipeModeDataset


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model_dir", help="where a hosted job keeps checkpoints; not used here")
    parser.add_argument("--sm-model-dir", default=os.environ.get("SM_MODEL_DIR"))
    parser.add_argument("--output-data-dir", default=os.environ.get("SM_OUTPUT_DATA_DIR"))
    return parser.parse_args()


def parse(records):
    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    parsed = tf.io.parse_example(records, features)
    images = tf.io.decode_raw(parsed["image"], tf.uint8, fixed_length=784)
    return tf.reshape(images, [-1, 28, 28, 1]), parsed["label"]


def batches(channel, size):
    records = PipeModeDataset(channel, record_format="TFRecord")
    # First the batch, then the parsing: one call for all of its records.
    return records.batch(size).map(parse, num_parallel_calls=2).prefetch(4)


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
    model = build(args.learning_rate)
    history = model.fit(
        batches("training", args.batch_size),
        epochs=args.epochs,
        validation_data=batches("validation", 1000),
        verbose=2,
    ).history

    tf.keras.utils.disable_interactive_logging()  # the export lists every variable
    model.export(os.path.join(args.sm_model_dir, "1"))
    os.makedirs(args.output_data_dir, exist_ok=True)
    with open(os.path.join(args.output_data_dir, "history.json"), "w") as file:
        json.dump(
            {key: [float(value) for value in values] for key, values in history.items()}, file
        )
    print(f"val_accuracy: {history['val_accuracy'][-1]:.4f}")


if __name__ == "__main__":
    main()

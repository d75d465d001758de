"""Train a classifier of Fashion-MNIST with tf.estimator and parameter servers.

The runtime runs a parameter server on each host and sets ``TF_CONFIG``; the first host is the
master, which also evaluates and exports, the others are workers that train beside it. All hosts
must see the same ``--model_dir``: a bucket in a hosted job, a shared folder by hand. Channels
``training`` and ``validation`` hold ``data.npz`` each, as examples/fashion_mnist/prepare_data.py
makes them.
"""

import argparse
import json
import os

import numpy as np
import tensorflow as tf

IMAGES = tf.feature_column.numeric_column("images", shape=(784,))


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000, help="of all hosts together")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--model_dir", required=True, help="a folder that all hosts share")
    parser.add_argument("--training", default=os.environ.get("SM_CHANNEL_TRAINING"))
    parser.add_argument("--validation", default=os.environ.get("SM_CHANNEL_VALIDATION"))
    parser.add_argument("--sm-model-dir", default=os.environ.get("SM_MODEL_DIR"))
    parser.add_argument("--output-data-dir", default=os.environ.get("SM_OUTPUT_DATA_DIR"))
    return parser.parse_args()


def batches(folder, size, seed=None):
    """Return a data set of the images in ``folder``: without end where there is a ``seed``.

    A generator keeps them out of the graph, which goes to other hosts and into checkpoints.
    """

    def generate():
        with np.load(os.path.join(folder, "data.npz")) as arrays:
            images, labels = arrays["images"].reshape(-1, 784), arrays["labels"].astype("int64")
        order = np.random.default_rng(seed).permutation(len(labels))
        while True:
            for start in range(0, len(labels), size):
                chosen = order[start : start + size]
                yield {"images": images[chosen].astype("float32") / 255}, labels[chosen]
            if seed is None:
                return

    features = {"images": tf.TensorSpec((None, 784), tf.float32)}
    signature = (features, tf.TensorSpec((None,), tf.int64))
    return tf.data.Dataset.from_generator(generate, output_signature=signature)


def main():
    args = arguments()
    tf.get_logger().setLevel("INFO")

    def training():
        host = json.loads(os.environ["SM_HOSTS"]).index(os.environ["SM_CURRENT_HOST"])
        return batches(args.training, args.batch_size, seed=host)

    def validation():
        return batches(args.validation, 1000)

    estimator = tf.estimator.DNNClassifier(
        hidden_units=[64],
        feature_columns=[IMAGES],
        n_classes=10,
        optimizer=lambda: tf.keras.optimizers.legacy.SGD(args.learning_rate, momentum=0.9),
        model_dir=args.model_dir,
        config=tf.estimator.RunConfig(save_checkpoints_steps=100, tf_random_seed=1),
    )
    tf.estimator.train_and_evaluate(
        estimator,
        tf.estimator.TrainSpec(training, max_steps=args.steps),
        tf.estimator.EvalSpec(validation, steps=None, start_delay_secs=0, throttle_secs=1),
    )
    if not estimator.config.is_chief:
        return
    metrics = estimator.evaluate(validation, name="final")

    def receiver():
        images = tf.compat.v1.placeholder(tf.float32, (None, 784), name="images")
        return tf.estimator.export.ServingInputReceiver({"images": images}, {"images": images})

    estimator.export_saved_model(args.sm_model_dir, receiver)
    os.makedirs(args.output_data_dir, exist_ok=True)
    with open(os.path.join(args.output_data_dir, "metrics.json"), "w") as file:
        json.dump({key: float(value) for key, value in metrics.items()}, file)
    for name, value in metrics.items():
        print(f"{name}: {float(value):.4f}")


if __name__ == "__main__":
    main()

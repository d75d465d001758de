"""Fit a line to made-up points with Keras; the code of an image built upon sm-runtime:cpu."""

import argparse
import os

import numpy as np
import tensorflow as tf

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--model-dir", default=os.environ["SM_MODEL_DIR"])
arguments, _ = parser.parse_known_args()

x = np.linspace(-1, 1, 256, dtype="float32")[:, np.newaxis]
y = 3 * x - 0.5
model = tf.keras.Sequential([tf.keras.Input((1,)), tf.keras.layers.Dense(1)])
model.compile(tf.keras.optimizers.Adam(0.1), "mse")
history = model.fit(x, y, epochs=arguments.epochs, batch_size=64, verbose=2)
model.export(os.path.join(arguments.model_dir, "1"))
print(f"loss: {history.history['loss'][-1]:.5f}")

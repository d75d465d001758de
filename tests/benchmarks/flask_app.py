"""What people write to serve a model: a plain Flask application, its model loaded with it."""

import os

import numpy as np
import tensorflow as tf
from flask import Flask, jsonify, request

app = Flask(__name__)
model = tf.saved_model.load(os.environ["MODEL"])
predict = model.signatures["serving_default"]
(name,) = predict.structured_input_signature[1]


@app.get("/ping")
def ping():
    return ""


@app.post("/invocations")
def invocations():
    images = np.array(request.get_json()["instances"], dtype="float32")
    (answer,) = predict(**{name: tf.constant(images)}).values()
    return jsonify(predictions=answer.numpy().tolist())

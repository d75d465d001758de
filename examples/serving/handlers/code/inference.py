"""A PNG or JPEG of any size becomes the model's input; its probabilities become a label."""

import json

import tensorflow as tf

LABELS = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
SIZE = (28, 28)


class BadRequest(ValueError):
    """An error that is the client's: the server answers with this status."""

    def __init__(self, message, status_code=400):
        super().__init__(message)
        self.status_code = status_code


def input_handler(data, context):
    if not context.request_content_type.startswith("image/"):
        raise BadRequest("send image/png or image/jpeg", 415)
    try:
        image = tf.io.decode_image(data.read(), channels=1, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise BadRequest("the body is no PNG or JPEG") from error
    pixels = tf.image.resize(image, SIZE)
    return json.dumps({"instances": [pixels.numpy().tolist()]})


def output_handler(response, context):
    if response.status_code != 200:
        raise BadRequest(response.text, response.status_code)
    (probabilities,) = response.json()["predictions"]
    best = max(range(len(LABELS)), key=probabilities.__getitem__)
    answer = {"label": LABELS[best], "probability": probabilities[best]}
    return json.dumps(answer), "application/json"

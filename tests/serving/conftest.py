"""Small models that TensorFlow makes, each once in a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[[str], Path]


@pytest.fixture(scope="session")
def tf() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    return tensorflow


@pytest.fixture(scope="session")
def made(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return the folder of a model of ``KINDS``: ``<name>/1`` is below it."""
    root = tmp_path_factory.mktemp("models")

    def make(kind: str) -> Path:
        folder = root / kind
        if not folder.exists():
            KINDS[kind](tf, folder / kind / "1")
        return folder

    return make


def several(tf: Any, folder: Path) -> None:
    class Several(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.scale = tf.Variable(2.0)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 3], tf.float32, "a"),
                tf.TensorSpec([3], tf.int64, "b"),
                tf.TensorSpec([], tf.bool, "flag"),
            ]
        )
        def mixed(self, a: Any, b: Any, flag: Any) -> Any:
            scaled = a * self.scale + tf.cast(b, tf.float32)
            return {"sum": tf.where(flag, scaled, -scaled), "twice": b * 2}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
        def strings(self, text: Any) -> Any:
            return {"upper": tf.strings.upper(text), "length": tf.strings.length(text)}

        @tf.function(input_signature=[tf.TensorSpec(None, tf.float64, "any")])
        def ranks(self, any: Any) -> Any:
            return {"same": any, "rank": tf.rank(any)}

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, "m")])
        def product(self, m: Any) -> Any:
            return {"p": tf.matmul(m, tf.ones([3, 2]))}

        @tf.function(input_signature=[tf.TensorSpec([2], tf.bfloat16, "h")])
        def halves(self, h: Any) -> Any:
            return {"half": h / 2, "float16": tf.cast(h, tf.float16)}

    model = Several()
    names = ("mixed", "strings", "ranks", "product", "halves")
    tf.saved_model.save(model, str(folder), {name: getattr(model, name) for name in names})


def keras_model(tf: Any) -> Any:
    tf.keras.utils.set_random_seed(1)
    images = tf.keras.Input((4, 4, 1), name="images")
    extra = tf.keras.Input((2,), name="extra")
    flat = tf.keras.layers.Flatten()(images)
    joined = tf.keras.layers.Concatenate()([flat, extra])
    return tf.keras.Model(
        [images, extra],
        [
            tf.keras.layers.Dense(3, name="classes")(joined),
            tf.keras.layers.Dense(1, name="score")(joined),
        ],
    )


def keras_saved_model(tf: Any, folder: Path) -> None:
    keras_model(tf).save(str(folder), save_format="tf")


def convolution(tf: Any, folder: Path) -> None:
    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.Input((8, 8, 1), name="images"),
            layers.Conv2D(4, 3),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    model.export(str(folder))


def version_1(tf: Any, folder: Path) -> None:
    """Write what an estimator does: classify and regress signatures, no object graph."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        examples = v1.placeholder(tf.string, [None], name="examples")
        parsed = v1.parse_example(examples, {"x": tf.io.FixedLenFeature([2], tf.float32)})
        weight = v1.get_variable("weight", initializer=[[1.0], [2.0]])
        scores = tf.matmul(parsed["x"], weight)
        raw = v1.placeholder(tf.float32, [None, 2], name="raw")
        session.run(v1.global_variables_initializer())
        build = v1.saved_model.builder.SavedModelBuilder(str(folder))
        of = v1.saved_model
        build.add_meta_graph_and_variables(
            session,
            [of.tag_constants.SERVING],
            {
                "serving_default": of.signature_def_utils.regression_signature_def(
                    examples, tf.squeeze(scores, 1)
                ),
                "classify": of.signature_def_utils.classification_signature_def(
                    examples, tf.as_string(scores), scores
                ),
                "predict": of.signature_def_utils.predict_signature_def(
                    {"raw": raw}, {"product": tf.matmul(raw, weight)}
                ),
            },
        )
        build.save()


def version_1_without_variables(tf: Any, folder: Path) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.int32, [None], name="x")
        v1.saved_model.simple_save(session, str(folder), {"x": x}, {"y": x + 1})


def without_signatures(tf: Any, folder: Path) -> None:
    class Plain(tf.Module):  # type: ignore[misc, name-defined]
        @tf.function
        def serve(self, x: Any, scale: float = 2.0) -> Any:
            return [x * scale, {"more": x + 1}]

        @tf.function
        def __call__(self, x: Any) -> Any:
            return x

    model = Plain()
    model.serve.get_concrete_function(tf.TensorSpec([None, 2], tf.float32, name="x"))
    model(tf.ones([1]))
    tf.saved_model.save(model, str(folder))


def traced_twice(tf: Any, folder: Path) -> None:
    class Plain(tf.Module):  # type: ignore[misc, name-defined]
        @tf.function
        def __call__(self, x: Any) -> Any:
            return x

    model = Plain()
    model(tf.ones([1]))
    model(tf.ones([2]))
    tf.saved_model.save(model, str(folder))


def module_without_variables(tf: Any, folder: Path) -> None:
    class Plain(tf.Module):  # type: ignore[misc, name-defined]
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
        def __call__(self, x: Any) -> Any:
            return x + 1

    tf.saved_model.save(Plain(), str(folder))


def keras_file(name: str) -> Callable[[Any, Path], None]:
    def save(tf: Any, folder: Path) -> None:
        folder.mkdir(parents=True)
        keras_model(tf).save(str(folder / name))

    return save


def sequential(tf: Any, folder: Path) -> None:
    folder.mkdir(parents=True)
    layers = [tf.keras.layers.Input((2,), name="pair"), tf.keras.layers.Dense(3, name="dense")]
    tf.keras.Sequential(layers).save(str(folder / "model.keras"))


def dictionaries(tf: Any, folder: Path) -> None:
    folder.mkdir(parents=True)
    a, b = tf.keras.Input((2,), name="a"), tf.keras.Input((2,), name="b")
    model = tf.keras.Model({"a": a, "b": b}, {"sum": a + b, "difference": a - b})
    model.save(str(folder / "model.keras"))


KINDS: dict[str, Callable[[Any, Path], None]] = {
    "several": several,
    "keras_saved_model": keras_saved_model,
    "convolution": convolution,
    "version_1": version_1,
    "version_1_without_variables": version_1_without_variables,
    "without_signatures": without_signatures,
    "traced_twice": traced_twice,
    "module_without_variables": module_without_variables,
    "keras": keras_file("model.keras"),
    "h5": keras_file("model.h5"),
    "sequential": sequential,
    "dictionaries": dictionaries,
}
SAVED = (
    "several", "keras_saved_model", "convolution", "version_1", "version_1_without_variables",
    "module_without_variables",
)  # fmt: skip
"""Those with signatures in a ``saved_model.pb``."""

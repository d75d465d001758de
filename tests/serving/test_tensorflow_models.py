"""Models that TensorFlow made: read without it, loaded and run."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sm_runtime.job.errors import ModelError
from sm_runtime.serving.layout import find
from sm_runtime.serving.model_files import read_saved_model
from sm_runtime.serving.tensorflow_models import Models, TensorFlowModel
from sm_runtime.serving.values import RequestError
from sm_runtime.serving.warm_up import recorded
from tests.model_files import keras_zip, message
from tests.serving.conftest import SAVED, Make

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # TensorFlow and Keras warn of themselves
]


def load(folder: Path) -> TensorFlowModel:
    layout = find(str(folder))
    layout.check()
    models = Models(layout)
    models.warm_up()
    return models.get()


@pytest.mark.parametrize("kind", SAVED)
def test_signatures_are_those_that_tensorflow_reads(tf: Any, made: Make, kind: str) -> None:
    from tensorflow.python.tools import saved_model_utils

    folder = str(made(kind) / kind / "1")
    graph = saved_model_utils.get_meta_graph_def(folder, "serve")
    read = read_saved_model(folder)
    assert read.tensorflow_version == graph.meta_info_def.tensorflow_version
    expected = {
        name: (
            {key: described(tf, info) for key, info in definition.inputs.items()},
            {key: described(tf, info) for key, info in definition.outputs.items()},
            definition.method_name.removeprefix("tensorflow/serving/"),
        )
        for name, definition in graph.signature_def.items()
        if not name.startswith("__saved_model")
    }
    assert {
        name: (
            {key: (spec.dtype, spec.shape) for key, spec in signature.inputs.items()},
            {key: (spec.dtype, spec.shape) for key, spec in signature.outputs.items()},
            signature.method,
        )
        for name, signature in read.signatures.items()
    } == expected
    assert set(tf.saved_model.load(folder).signatures) == set(read.signatures)


def described(tf: Any, info: Any) -> tuple[str, tuple[int | None, ...] | None]:
    shape = tf.TensorShape(info.tensor_shape)
    return tf.as_dtype(info.dtype).name, None if shape.rank is None else tuple(shape.as_list())


def test_every_dtype_goes_in_and_out(tf: Any, made: Make) -> None:
    model = load(made("several"))
    assert (model.name, model.version, model.default_signature) == ("several", 1, "halves")
    large = 2**53 + 1
    out = model.run(
        "mixed",
        {
            "a": np.ones((2, 3), np.float32),
            "b": np.array([1, 2, large]),
            "flag": np.array(True),
        },
    )
    assert out["twice"].tolist() == [2, 4, 2 * large] and out["twice"].dtype == np.int64
    assert out["sum"][1].tolist() == [3.0, 4.0, np.float32(large)]
    words = np.array([b"ab\0\xff", b""], object)
    out = model.run("strings", {"text": words})
    assert out["upper"].tolist() == [b"AB\0\xff", b""] and out["upper"].dtype == object
    assert out["length"].tolist() == [4, 0]
    assert model.run("strings", {"text": np.array([b"x"])})["upper"].tolist() == [b"X"]
    for value in (np.array(1.5), np.ones((1, 2, 3))):
        assert model.run("ranks", {"any": value})["rank"] == value.ndim
    out = model.run("halves", {"h": np.array([1, 3], tf.bfloat16.as_numpy_dtype)})
    assert out["half"].astype(float).tolist() == [0.5, 1.5]
    assert out["float16"].dtype == np.float16


def test_the_example_of_training_gives_what_keras_gives(tf: Any, made: Make) -> None:
    inputs = {
        "images": np.random.default_rng(1).random((3, 4, 4, 1), np.float32),
        "extra": np.ones((3, 2), np.float32),
    }
    answers = [
        load(made(kind)).run("serving_default", inputs)
        for kind in ("keras", "h5", "keras_saved_model")
    ]
    for answer in answers:
        assert {name: array.shape for name, array in answer.items()} == {
            "classes": (3, 3),
            "score": (3, 1),
        }
        np.testing.assert_allclose(answer["classes"], answers[0]["classes"], rtol=1e-5)


def test_a_keras_file_has_a_signature_of_its_inputs(made: Make) -> None:
    signature = load(made("h5")).signatures["serving_default"]
    assert {name: (spec.dtype, spec.shape) for name, spec in signature.inputs.items()} == {
        "images": ("float32", (None, 4, 4, 1)),
        "extra": ("float32", (None, 2)),
    }
    assert signature.outputs["classes"].shape == (None, 3)


def test_keras_files_keep_the_names_of_their_inputs_and_outputs(made: Make) -> None:
    pair = np.ones((1, 2), np.float32)
    assert load(made("sequential")).run("serving_default", {"pair": pair})["dense"].shape == (1, 3)
    out = load(made("dictionaries")).run("serving_default", {"b": pair, "a": 3 * pair})
    assert {name: array.tolist() for name, array in out.items()} == {
        "sum": [[4.0, 4.0]],
        "difference": [[2.0, 2.0]],
    }


def test_signatures_of_version_1_answer(tf: Any, made: Make) -> None:
    model = load(made("version_1"))
    assert model.default_signature == "serving_default"
    methods = {name: signature.method for name, signature in model.signatures.items()}
    assert methods == {
        "serving_default": "regress", "classify": "classify", "predict": "predict",
    }  # fmt: skip
    feature = tf.train.Feature(float_list=tf.train.FloatList(value=[1.0, 2.0]))
    example = tf.train.Example(features=tf.train.Features(feature={"x": feature}))
    examples = np.array([example.SerializeToString()], object)
    assert model.run("serving_default", {"inputs": examples})["outputs"].tolist() == [5.0]
    assert model.run("classify", {"inputs": examples})["scores"].tolist() == [[5.0]]
    raw = np.array([[3, 4]], np.float32)
    assert model.run("predict", {"raw": raw})["product"].tolist() == [[11.0]]


def test_models_without_variables_answer(made: Make) -> None:
    model = load(made("version_1_without_variables"))
    assert model.run("serving_default", {"x": np.array([1], np.int32)})["y"].tolist() == [2]
    model = load(made("module_without_variables"))
    assert model.run("serving_default", {"x": np.ones(1, np.float32)})["output_0"] == [2]


def test_a_model_without_signatures_is_called_by_its_function(made: Make) -> None:
    model = load(made("without_signatures"))
    out = model.run("serving_default", {"x": np.ones((1, 2), np.float32)})
    assert {name: array.tolist() for name, array in out.items()} == {
        "output_0": [[2.0, 2.0]],
        "output_1": [[2.0, 2.0]],
    }
    with pytest.raises(ModelError, match=r"its function '__call__' was traced 2 times; save the"):
        load(made("traced_twice"))


ONES = np.ones((1, 8, 8, 1), np.float32)


@pytest.mark.parametrize(
    ("kind", "signature", "inputs", "sentence"),
    [
        ("convolution", "serving_default", {"images": ONES[0]},
         "signature 'serving_default': input 'images' must be float32 [?, 8, 8, 1],"
         " not float32 [8, 8, 1]"),
        ("convolution", "serving_default", {"images": ONES[:, 1:]},
         "signature 'serving_default': input 'images' must be float32 [?, 8, 8, 1],"
         " not float32 [1, 7, 8, 1]"),
        ("convolution", "serving_default", {"images": ONES.astype("int64")},
         "signature 'serving_default': input 'images' must be float32 [?, 8, 8, 1],"
         " not int64 [1, 8, 8, 1]"),
        ("convolution", "serving_default", {"images": np.array([b"x"], object)},
         "signature 'serving_default': input 'images' must be float32 [?, 8, 8, 1],"
         " not string [1]"),
        ("convolution", "serving_default", {"image": ONES},
         "signature 'serving_default' takes 'images' (float32 [?, 8, 8, 1]), not 'image'"),
        ("convolution", "other", {},
         "model 'convolution' has no signature 'other'; it has: serve, serving_default"),
        ("several", "ranks", {"any": ONES},
         "signature 'ranks': input 'any' must be float64 of any shape, not float32 [1, 8, 8, 1]"),
        ("several", "product", {"m": np.ones((1, 2), np.float32)},
         "model 'several', signature 'product': Matrix size-incompatible: In[0]: [1,2],"
         " In[1]: [3,2]"),
        ("several", "strings", {"text": np.array([b"x", 1.5], object)},
         "model 'several', signature 'strings': "),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_one_sentence(
    made: Make, kind: str, signature: str, inputs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RequestError) as caught:
        load(made(kind)).run(signature, inputs)
    assert caught.value.status == 400 and "\n" not in str(caught.value)
    assert str(caught.value).startswith(sentence)


@pytest.fixture
def versions(made: Make, tmp_path: Path) -> Path:
    """Return a folder with versions 2, 10 and 00000123 of ``a``, 10 damaged, and with ``b``."""
    module = made("module_without_variables") / "module_without_variables/1"
    for path in ("a/2", "a/10", "a/00000123", "b/1"):
        shutil.copytree(module, tmp_path / path)
    data = tmp_path / "a/10/variables/variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:10])
    return tmp_path


def test_lower_versions_are_loaded_on_first_use(versions: Path) -> None:
    models = Models(find(str(versions)))
    models.warm_up()
    assert models.default_name == "a" and models.get().version == 123
    assert models.versions() == {2: "END", 10: "END", 123: "AVAILABLE"}
    assert models.versions("b") == {1: "AVAILABLE"}
    found: list[TensorFlowModel] = []
    threads = [threading.Thread(target=lambda: found.append(models.get("a", 2))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len({id(model) for model in found}) == 1
    assert models.versions("a") == {2: "AVAILABLE", 10: "END", 123: "AVAILABLE"}


@pytest.mark.parametrize(
    ("name", "version", "status", "sentence"),
    [
        ("c", None, 404, "there is no model 'c'; there are: a (version 2, 10, 123); b (version 1)"),
        (None, 3, 404, "model 'a' has no version 3; it has: 2, 10, 123"),
        ("a", 10, 500, "version 10 of model 'a' cannot be loaded: "),
    ],
)
def test_versions_that_there_are_not_are_named(
    versions: Path, name: str | None, version: int | None, status: int, sentence: str
) -> None:
    models = Models(find(str(versions)))
    for _ in range(2):
        with pytest.raises(RequestError) as caught:
            models.get(name, version)
        assert caught.value.status == status and str(caught.value).startswith(sentence)
        assert "\n" not in str(caught.value)


def test_the_highest_version_must_load(versions: Path) -> None:
    shutil.rmtree(versions / "a/00000123")
    layout = find(str(versions))
    layout.check()
    with pytest.raises(ModelError) as caught:
        Models(layout).warm_up()
    assert f"{versions}/a/10 cannot be loaded by TensorFlow" in str(caught.value)
    assert "copy or save the model again" in str(caught.value)


def test_a_file_of_keras_3_needs_keras_3(tf: Any, tmp_path: Path) -> None:
    keras_zip(tmp_path / "model.keras", "3.4.1")
    if importlib.metadata.version("keras").startswith("3"):
        sentence = r"model\.keras cannot be loaded by TensorFlow"
    else:
        sentence = r"saved by Keras 3\.4\.1, and here is Keras 2\.\d+\.\d+ with TensorFlow 2\.\d+"
    with pytest.raises(ModelError, match=sentence):
        load(tmp_path)


def test_recorded_requests_warm_up(
    tf: Any, made: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(made("version_1"), tmp_path / "m")
    folder = tmp_path / "m/version_1/1"
    tensor = tf.make_tensor_proto([[1.0, 2.0]]).SerializeToString()
    predict = message((1, message((3, "predict"))), (2, message((1, "raw"), (2, tensor))))
    feature = tf.train.Feature(float_list=tf.train.FloatList(value=[1.0, 2.0]))
    context = tf.train.Example(features=tf.train.Features(feature={"x": feature}))
    shared = message((2, message((1, b""), (2, context.SerializeToString()))))
    regress = message((1, message((3, "serving_default"))), (2, shared))
    (folder / "assets.extra").mkdir()
    file = folder / "assets.extra/tf_serving_warmup_requests"
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(message((1, b""), (6, message((1, predict)))))
        writer.write(message((3, message((1, regress)))))
        writer.write(message((6, message((1, message((1, message((3, "unknown")))))))))
    model = load(tmp_path)
    replayed = list(recorded(str(file), model))
    assert [name for name, _ in replayed] == ["predict", "serving_default"]
    assert model.run(*replayed[0])["product"].tolist() == [[5.0]]
    assert model.run(*replayed[1])["outputs"].tolist() == [5.0]
    file.write_bytes(b"this is no record")
    with caplog.at_level(logging.WARNING, "sm_runtime"):
        load(tmp_path)
    assert f"{file} is not replayed" in caplog.text


CONFIGURED = """
import sys
from sm_runtime.processes import hardware
from sm_runtime.serving import tensorflow_models
assert "tensorflow" not in sys.modules
tensorflow_models.configure(**eval(sys.argv[1]))
import tensorflow as tf
threads = tf.config.threading
print(threads.get_intra_op_parallelism_threads(), threads.get_inter_op_parallelism_threads())
print(hardware.cpus())
tf.constant(1)
tensorflow_models.configure(intra_op=7)
"""


@pytest.mark.parametrize(
    ("arguments", "share"), [({}, 1), ({"workers": 2}, 2), ({"workers": 1000}, 1000)], ids=str
)
def test_workers_share_the_cpus(arguments: dict[str, int], share: int) -> None:
    command = (sys.executable, "-c", CONFIGURED, repr(arguments))
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    *threads, cpus = map(int, done.stdout.split())
    assert threads == [max(1, cpus // share)] * 2
    assert "TensorFlow's threads and memory stay as they are" in done.stderr

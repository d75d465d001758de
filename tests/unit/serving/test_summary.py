"""``sm-runtime check --model`` says what would be served, and what is wrong with it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from tests import dry
from tests.harness import Base
from tests.model_files import (
    FLOAT,
    INT64,
    PLAIN,
    STRING,
    graph,
    hdf5,
    keras_zip,
    saved_model,
    signature,
)


def test_models_versions_and_signatures_are_listed(base: Base) -> None:
    root = base.root / "model"
    both = {
        **PLAIN,
        "words": signature({"n": (INT64, ()), "w": (STRING, (-1,))}, {}, "classify"),
    }
    saved_model(root / "b/7", graph(both))
    saved_model(root / "b/00012", graph({}, functions=("serve",)))
    saved_model(root / "a/1")
    keras_zip(root / "model.keras")
    result = dry.look(base, "check", "--model", SAGEMAKER_TFS_DEFAULT_MODEL_NAME="b")
    assert result.status == 0
    lines = [line for line in result.out.splitlines() if not line.startswith("a body for")]
    assert lines == [
        "model a",
        f"  version 1: {root}/a/1 (SavedModel of TensorFlow 2.15.1)",
        "    serving_default (predict): x float32 [?, 2] -> y float32 [?]",
        "model b, the default",
        f"  version 12: {root}/b/00012 (SavedModel of TensorFlow 2.15.1)",
        "    no signature; its function serve is called",
        f"  version 7: {root}/b/7 (SavedModel of TensorFlow 2.15.1)",
        "    serving_default (predict): x float32 [?, 2] -> y float32 [?]",
        "    words (classify): n int64 [], w string [?] -> nothing",
        f"note: {root}/model.keras is not served, as there is a SavedModel",
        "no problem found",
    ]


def test_keras_files_are_listed(base: Base) -> None:
    keras_zip(base.root / "model/new.keras", "3.4.1")
    hdf5(base.root / "model/old.h5")
    result = dry.look(base, "check", "--model")
    assert result.status == 0
    assert result.out.splitlines()[:-1] == [
        "model new, the default",
        f"  version 1: {base.root}/model/new.keras (file of Keras 3.4.1)",
        "model old",
        f"  version 1: {base.root}/model/old.h5 (Keras file)",
    ]


def test_every_problem_is_a_line(base: Base) -> None:
    root = base.root / "elsewhere"
    for name in ("a", "b", "c"):
        saved_model(root / name / "1")
    (root / "a/1/saved_model.pb").write_bytes(b"")
    shutil.rmtree(root / "c/1/variables")
    result = dry.look(base, "check", "--model", str(root), SAGEMAKER_TFS_DEFAULT_MODEL_NAME="d")
    assert result.status == 1
    assert result.out.splitlines()[-3:] == [
        "SAGEMAKER_TFS_DEFAULT_MODEL_NAME: there is no model 'd'; the models are: a, b, c",
        f"{root}/a/1/saved_model.pb is empty; copy or save the model again",
        f"{root}/c/1/variables cannot be read (No such file or directory), and the model has its"
        " weights there; copy or save the model again with all its files",
    ]


def test_a_model_of_another_framework_is_a_matter_of_its_code(base: Base) -> None:
    base.write("model/weights.bin", "x")
    result = dry.look(base, "check", "--model")
    assert result.status == 1 and "holds no model, only weights.bin; put a" in result.out
    base.write("model/code/inference.py", "")
    result = dry.look(base, "check", "--model")
    assert (result.status, result.out.splitlines()) == (
        0,
        [
            "no model of TensorFlow or Keras; code/inference.py has to load what it serves",
            "no problem found",
        ],
    )


def test_nothing_is_left_of_an_archive(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    saved_model(tmp_path / "made/m/1")
    (base.root / "model").mkdir(parents=True)
    shutil.make_archive(str(base.root / "model/model"), "gztar", tmp_path / "made")
    result = dry.look(base, "check", "--model")
    assert result.status == 0 and "model m, the default" in result.out
    (base.root / "model/model.tar.gz").write_bytes(b"nothing")
    result = dry.look(base, "check", "--model")
    assert result.status == 1 and "model.tar.gz is neither a tar" in result.out.replace("'", "")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_body_of_a_large_input_is_short(base: Base) -> None:
    large = {"serving_default": signature({"x": (FLOAT, (-1, 224, 224, 3))}, {})}
    saved_model(base.root / "model/a/1", graph(large))
    result = dry.look(base, "check", "--model")
    line = 'a body for serving_default: {"instances": [<float32 [224, 224, 3]>]}'
    assert line in result.out.splitlines()

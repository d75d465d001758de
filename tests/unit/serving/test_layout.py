"""What is found below a model folder, and which sentence says what is wrong with it."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sm_runtime.job.errors import ModelError
from sm_runtime.serving.layout import Layout, find
from tests.model_files import graph, hdf5, keras_zip, message, saved_model, signature


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "model"


def places(layout: Layout) -> dict[str, dict[int, str]]:
    return {
        name: {
            number: os.path.relpath(version.path, layout.folder)
            for number, version in model.versions.items()
        }
        for name, model in layout.models.items()
    }


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["1"], {"model": {1: "1"}}),
        (["00000123", "124"], {"model": {123: "00000123", 124: "124"}}),
        (["export/Servo/1700000000"], {"Servo": {1700000000: "export/Servo/1700000000"}}),
        (["b/1", "a/2", "a/10"], {"a": {2: "a/2", 10: "a/10"}, "b": {1: "b/1"}}),
        (["."], {"model": {1: "."}}),
        (["fashion"], {"fashion": {1: "fashion"}}),
        (["model/1", "code/1", "assets/1", ".x/1"], {"model": {1: "model/1"}}),
        (["m/1", "m/1/assets.extra/2", "m/1/variables/3"], {"m": {1: "m/1"}}),
    ],
    ids=str,
)
def test_saved_models_are_found_at_any_depth(
    root: Path, folders: list[str], expected: dict[str, dict[int, str]]
) -> None:
    for folder in folders:
        saved_model(root / folder)
    layout = find(str(root))
    layout.check()
    assert places(layout) == expected
    assert layout.default_name == next(iter(expected))
    assert layout.notes == ()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model.keras", {"model": {1: "model.keras"}}),
        ("fashion.h5", {"fashion": {1: "fashion.h5"}}),
        ("deep/fashion.hdf5", {"fashion": {1: "deep/fashion.hdf5"}}),
        ("fashion/3/anything.keras", {"fashion": {3: "fashion/3/anything.keras"}}),
        ("3/anything.h5", {"model": {3: "3/anything.h5"}}),
    ],
)
def test_keras_files_are_models(root: Path, path: str, expected: dict[str, dict[int, str]]) -> None:
    (keras_zip if path.endswith(".keras") else hdf5)(root / path)
    (root / "assets").mkdir()
    layout = find(str(root))
    layout.check()
    assert places(layout) == expected


def test_a_keras_file_beside_a_saved_model_is_not_served_and_that_is_said(root: Path) -> None:
    saved_model(root / "1")
    keras_zip(root / "model.keras")
    layout = find(str(root))
    layout.check()
    assert places(layout) == {"model": {1: "1"}}
    assert layout.notes == (f"{root}/model.keras is not served, as there is a SavedModel",)


def test_weights_beside_a_model_do_no_harm(root: Path) -> None:
    keras_zip(root / "model.keras")
    hdf5(root / "checkpoint.h5", has_model=False)
    layout = find(str(root))
    layout.check()
    assert list(layout.models) == ["model"]
    assert "checkpoint.h5 holds weights without a model; save the whole" in layout.notes[0]


def test_the_default_model_can_be_named(root: Path) -> None:
    saved_model(root / "a/1")
    saved_model(root / "b/1")
    assert find(str(root), "b").default_name == "b"
    with pytest.raises(ModelError) as caught:
        find(str(root), "c").check()
    assert str(caught.value) == (
        "SAGEMAKER_TFS_DEFAULT_MODEL_NAME: there is no model 'c'; the models are: a, b"
    )


def test_two_models_of_one_name_and_version_are_named(root: Path) -> None:
    for folder in ("x/m/1", "y/m/1", "y/m/2"):
        saved_model(root / folder)
    with pytest.raises(ModelError) as caught:
        find(str(root)).check()
    assert str(caught.value) == (
        f"{root}/x/m/1 and {root}/y/m/1 are both version 1 of model 'm'; rename or remove one"
        " of them"
    )


def test_links_are_followed_and_circles_end(root: Path, tmp_path: Path) -> None:
    saved_model(tmp_path / "elsewhere/1")
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "circle").symlink_to(root)
    (root / "nowhere").symlink_to(root / "absent")
    (root / "self").symlink_to(root / "self")
    assert places(find(str(root))) == {"linked": {1: "linked/1"}}


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        (
            ["weights.ckpt", "code/inference.txt", "logs/"],
            "ROOT holds no model, only weights.ckpt, code/inference.txt, logs/; put a SavedModel",
        ),
        ([f"{number}.bin" for number in range(30)], "7.bin and 22 more; put a SavedModel at"),
        ([], "ROOT is empty; put a SavedModel at <name>/1/saved_model.pb, or a Keras file"),
        (["export/1/variables/variables.index"], "only export/1/variables/variables.index; put"),
    ],
    ids=["other files", "many", "empty", "saved_model.pb is missing"],
)
def test_a_folder_without_a_model_is_described(root: Path, paths: list[str], sentence: str) -> None:
    root.mkdir()
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).mkdir() if path.endswith("/") else (root / path).touch()
    layout = find(str(root))
    assert (layout.models, layout.problems, layout.default_name) == ({}, (), "")
    if len(paths) == 30:
        paths.sort()
        sentence = f"{paths[7]} and 22 more; put a SavedModel at"
    with pytest.raises(ModelError) as caught:
        layout.check()
    assert sentence.replace("ROOT", str(root)) in str(caught.value)


def test_an_absent_folder_is_described(root: Path) -> None:
    assert find(str(root)).nothing() == f"{root} does not exist; mount or unpack the model there"


def test_a_saved_model_deep_in_a_folder_without_a_version_is_pointed_out(root: Path) -> None:
    saved_model(root / "out/export")
    saved_model(root / "out/more/export")
    with pytest.raises(ModelError) as caught:
        find(str(root)).check()
    assert str(caught.value) == (
        f"{root}/out/export is not served, as the folder of a version has a number for a name;"
        f" move its content to {root}/out/export/1"
    )


def test_a_saved_model_as_text_is_pointed_out(root: Path) -> None:
    (root / "1").mkdir(parents=True)
    (root / "1/saved_model.pbtxt").touch()
    with pytest.raises(ModelError, match=r"1/saved_model\.pbtxt is text; save the model again as"):
        find(str(root)).check()


def packed(root: Path, *names: str) -> None:
    with tarfile.open(root / "model.tar.gz", "w:gz") as archive:
        for name in names:
            archive.add(root / name, name)
            shutil.rmtree(root / name)


@pytest.mark.parametrize("beside", [(), ("output.tar.gz", "report.html")])
def test_an_archive_as_training_leaves_it_is_unpacked(root: Path, beside: tuple[str, ...]) -> None:
    saved_model(root / "export/Servo/7")
    packed(root, "export")
    for name in beside:
        (root / name).touch()
    layout = find(str(root))
    layout.check()
    assert places(layout) == {"Servo": {7: "export/Servo/7"}}
    assert layout.folder == layout.unpacked
    assert {*os.listdir(root)} == {"model.tar.gz", *beside}
    assert find(layout.folder) == Layout(
        folder=layout.folder, models=layout.models, default_name="Servo"
    )
    shutil.rmtree(layout.unpacked)


def test_an_archive_beside_other_files_is_left_alone(root: Path) -> None:
    saved_model(root / "export/Servo/7")
    packed(root, "export")
    (root / "code").mkdir()
    layout = find(str(root))
    assert not layout.models and not layout.unpacked
    assert "only model.tar.gz, code/; put a SavedModel" in layout.nothing()


def test_an_archive_that_reaches_outside_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    root.mkdir()
    with tarfile.open(root / "model.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("../../outside")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(ModelError, match=r"'?\.\./\.\./outside'? has '\.\.' in its name"):
        find(str(root))
    assert os.listdir(tmp_path / "temporary") == []


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def remove(path: Path) -> None:
    path.unlink()


SERVED = message((1, 1), (2, graph()))
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda m: truncate(m / "saved_model.pb", 0), "saved_model.pb is empty; copy or save"),
    "cut": (
        lambda m: truncate(m / "saved_model.pb", len(SERVED) - 5),
        "saved_model.pb is truncated or no SavedModel (field 2 of ",
    ),
    "text": (
        lambda m: (m / "saved_model.pb").write_text("hello world, this is no model"),
        "saved_model.pb is truncated or no SavedModel (",
    ),
    "another message": (
        lambda m: (m / "saved_model.pb").write_bytes(message((1, 1))),
        "saved_model.pb is truncated or no SavedModel (it holds no graph)",
    ),
    "pointer": (
        lambda m: (m / "saved_model.pb").write_text("version https://git-lfs.github.com/spec/v1"),
        "saved_model.pb is a Git LFS pointer; run `git lfs pull`",
    ),
    "page": (
        lambda m: (m / "saved_model.pb").write_text("\n<!DOCTYPE html><html>404"),
        "saved_model.pb is an HTML page; download",
    ),
    "pointer to weights": (
        lambda m: (m / "variables/variables.data-00000-of-00001").write_text(
            "version https://git-lfs.github.com/spec/v1"
        ),
        "variables.data-00000-of-00001 is a Git LFS pointer",
    ),
    "no variables": (
        lambda m: shutil.rmtree(m / "variables"),
        "variables cannot be read (No such file or directory), and the model has its weights",
    ),
    "no index": (
        lambda m: remove(m / "variables/variables.index"),
        "variables/variables.index is missing; copy",
    ),
    "cut index": (
        lambda m: truncate(m / "variables/variables.index", 7),
        "variables/variables.index is truncated or no index",
    ),
    "no shard": (
        lambda m: remove(m / "variables/variables.data-00000-of-00001"),
        "variables/variables.data-00000-of-00001 is missing; copy",
    ),
    "shards": (
        lambda m: (m / "variables/variables.data-00000-of-00001").rename(
            m / "variables/variables.data-00001-of-00004"
        ),
        "variables/variables.data-00000-of-00004 and 2 more is missing; copy",
    ),
    "empty shard": (
        lambda m: truncate(m / "variables/variables.data-00000-of-00001", 0),
        "variables.data-00000-of-00001 is empty; copy",
    ),
    "no signature": (
        lambda m: (m / "saved_model.pb").write_bytes(message((2, graph(signatures={})))),
        "saved_model.pb has no signature that can be served; save the model with",
    ),
    "training only": (
        lambda m: (m / "saved_model.pb").write_bytes(message((2, graph(tags=("train",))))),
        "saved_model.pb has no graph with the tag 'serve', only with: train; save it",
    ),
    "only sparse": (
        lambda m: (m / "saved_model.pb").write_bytes(
            message((2, graph({"s": message((1, message((1, "x"), (2, message((4, b""))))))})))
        ),
        "saved_model.pb has no signature that can be served",
    ),
    "a folder": (
        lambda m: (remove(m / "saved_model.pb"), (m / "saved_model.pb").mkdir()),
        "saved_model.pb is a folder, not a file",
    ),
}


@pytest.mark.parametrize(("spoil", "sentence"), BROKEN.values(), ids=BROKEN)
def test_a_broken_saved_model_is_one_sentence(
    root: Path, spoil: Callable[[Path], object], sentence: str
) -> None:
    spoil(saved_model(root / "m/1"))
    layout = find(str(root))
    with pytest.raises(ModelError) as caught:
        layout.check()
    assert f"{root}/m/1/" in str(caught.value) and sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert layout.models["m"].highest.problem == str(caught.value)


def test_a_lower_version_that_is_broken_is_a_note(root: Path) -> None:
    saved_model(root / "m/1")
    saved_model(root / "m/2")
    truncate(root / "m/1/saved_model.pb", 0)
    layout = find(str(root))
    layout.check()
    assert layout.notes == (layout.models["m"].versions[1].problem,) != ("",)


def test_variables_are_asked_of_models_that_have_some_alone(root: Path) -> None:
    saved_model(root / "1", graph(is_object=False), variables=False)
    find(str(root)).check()


def test_of_several_graphs_the_one_for_serving_on_cpus_is_taken(root: Path) -> None:
    other = {"other": signature({}, {"y": (1, ())})}
    saved_model(root / "1", graph(other, tags=("serve", "tpu")), graph(), graph(other, ("train",)))
    content = find(str(root)).models["model"].highest.content
    assert content is not None and list(content.signatures) == ["serving_default"]  # type: ignore[union-attr]


BROKEN_KERAS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no zip": ("m.keras", lambda p: p.write_bytes(b"PK nothing"), "truncated or no Keras file"),
    "cut zip": ("m.keras", lambda p: truncate(keras_zip(p), 90), "truncated or no Keras file"),
    "no config": (
        "m.keras", lambda p: keras_zip(p, leave_out="config.json"), "has no config.json, as"
    ),
    "no weights": (
        "m.keras", lambda p: keras_zip(p, leave_out="model.weights.h5"), "has no model.weights.h5;"
    ),
    "page": ("m.keras", lambda p: p.write_text("<html>"), "is an HTML page"),
    "empty": ("m.h5", lambda p: p.touch(), "m.h5 is empty"),
    "no HDF5": ("m.h5", lambda p: p.write_text("hello"), "m.h5 is no HDF5 file; copy or save"),
    "cut 0": ("m.h5", lambda p: hdf5(p, lacking=1), "(it has 999 bytes, and says 1000); copy"),
    "cut 1": ("m.h5", lambda p: hdf5(p, superblock=1, lacking=1), "999 bytes, and says 1000"),
    "cut 2": ("m.h5", lambda p: hdf5(p, superblock=2, lacking=1), "999 bytes, and says 1000"),
    "head alone": ("m.h5", lambda p: hdf5(p, lacking=991), "is truncated or damaged"),
    "weights": ("m.h5", lambda p: hdf5(p, has_model=False), "holds weights without a model; save"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "make", "sentence"), BROKEN_KERAS.values(), ids=BROKEN_KERAS)
def test_a_broken_keras_file_is_one_sentence(
    root: Path, name: str, make: Callable[[Path], object], sentence: str
) -> None:
    root.mkdir()
    make(root / name)
    with pytest.raises(ModelError) as caught:
        find(str(root)).check()
    assert sentence in str(caught.value) and f"{root}/{name}" in str(caught.value)


def test_damage_at_any_byte_is_a_sentence_or_no_matter(root: Path) -> None:
    file = saved_model(root / "1") / "saved_model.pb"
    whole = file.read_bytes()
    for at in range(len(whole)):
        for spoilt in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            file.write_bytes(spoilt)
            layout = find(str(root))
            assert layout.models["model"].highest.content or layout.problems

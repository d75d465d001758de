"""Where a model's own code is looked for, and what is said of code that would not run."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sm_runtime.job.errors import CodeError, ConfigError
from sm_runtime.job.model import Paths
from sm_runtime.serving import code
from sm_runtime.serving.code import OwnCode

HANDLER = "def handler(data, context):\n    return data.read(), 'text/plain'\n"


@pytest.fixture
def ml(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path


def put(path: Path, text: str = HANDLER) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def find(ml: Path, environ: dict[str, str] | None = None, **more: str) -> OwnCode | None:
    return code.find(str(ml / "model"), environ or {}, Paths(str(ml)), **more)


def checked(text: str, tmp_path: Path) -> str:
    """Return what is said against a program; nothing: it is accepted."""
    program = put(tmp_path / "code" / "inference.py", text)
    try:
        code.check(OwnCode(directory=str(tmp_path / "code"), program=program))
    except CodeError as error:
        return str(error)
    return ""


def test_no_code_is_fine(ml: Path) -> None:
    assert find(ml) is None
    (ml / "model" / "code").mkdir()
    assert find(ml) is None


def test_code_beside_the_model_is_found_with_its_library_and_requirements(ml: Path) -> None:
    folder = ml / "model" / "code"
    program = put(folder / "inference.py")
    put(folder / "requirements.txt", "")
    put(folder / "lib" / "requirements.txt", "")
    found = find(ml)
    assert found is not None and found.program == program
    assert found.search_path == (str(folder), str(folder / "lib"))
    assert found.requirements == (str(folder), str(folder / "lib"))


def test_requirements_count_without_a_program(ml: Path) -> None:
    put(ml / "model" / "code" / "lib" / "requirements.txt", "")
    found = find(ml)
    assert found is not None and not found.program
    assert found.requirements == (str(ml / "model" / "code" / "lib"),)


@pytest.mark.parametrize("name", ["my.py", "my", "./my.py", "src/serve.py"])
def test_a_named_program_is_taken(ml: Path, name: str) -> None:
    file = ml / "model" / "code" / name.removeprefix("./").removesuffix(".py")
    put(file.with_suffix(".py"))
    put(ml / "model" / "code" / "inference.py")
    found = find(ml, program=name)
    assert found is not None and found.program == str(file.with_suffix(".py"))
    assert found.search_path[0] == str(file.parent)


def test_a_named_program_that_is_not_there_is_an_error_with_those_that_are(ml: Path) -> None:
    other = put(ml / "model" / "code" / "inference.py")
    with pytest.raises(CodeError) as caught:
        find(ml, program="my.py")
    assert "SAGEMAKER_PROGRAM=my.py is not in" in str(caught.value) and other in str(caught.value)


@pytest.mark.parametrize(
    "where", ["export/code", "export/1/code", ".", "code/src", "1", "code/lib"]
)
def test_code_in_the_wrong_place_is_an_error_with_both_paths(ml: Path, where: str) -> None:
    wrong = put(ml / "model" / where / "inference.py")
    with pytest.raises(CodeError) as caught:
        find(ml)
    assert wrong in str(caught.value)
    assert f"move it to {ml}/model/code/inference.py" in str(caught.value)
    assert ("SAGEMAKER_PROGRAM=" in str(caught.value)) == where.startswith("code/")


def test_a_copy_elsewhere_is_no_error_where_the_program_is_in_its_place(ml: Path) -> None:
    program = put(ml / "model" / "code" / "inference.py")
    put(ml / "model" / "backup" / "inference.py")
    found = find(ml)
    assert found is not None and found.program == program


@pytest.mark.parametrize("form", ["{}/submitted", "file://{}/submitted"])
def test_a_submitted_folder_is_used_where_it_is_and_first(ml: Path, form: str) -> None:
    put(ml / "model" / "code" / "inference.py")
    program = put(ml / "submitted" / "inference.py")
    found = find(ml, submit_directory=form.format(ml))
    assert found is not None and found.program == program


def test_a_submitted_folder_without_the_program_gives_way_to_the_models_own(ml: Path) -> None:
    program = put(ml / "model" / "code" / "inference.py")
    (ml / "code").mkdir()
    found = find(ml, submit_directory=str(ml / "code"))
    assert found is not None and found.program == program
    missing = find(ml, submit_directory=str(ml / "code"), program="inference.py")
    assert missing == found


def test_requirements_that_training_left_are_not_a_models(ml: Path) -> None:
    put(ml / "code" / "requirements.txt", "")
    put(ml / "code" / "train.py", "")
    assert find(ml) is None


def test_a_program_in_the_images_code_folder_is_found(ml: Path) -> None:
    program = put(ml / "code" / "inference.py")
    found = find(ml)
    assert found is not None and found.program == program


def test_a_model_of_several_has_its_own_code_or_that_of_all(ml: Path) -> None:
    shared = put(ml / "model" / "code" / "inference.py")
    model = ml / "models" / "x" / "model"
    model.mkdir(parents=True)
    found = code.find(str(model), {}, Paths(str(ml)))
    assert found is not None and found.program == shared
    own = put(model / "code" / "inference.py")
    found = code.find(str(model), {}, Paths(str(ml)))
    assert found is not None and found.program == own


@pytest.mark.parametrize("form", ["{}/nothing", "file://{}/nothing", "http://host/x", "file://h/x"])
def test_a_submitted_place_that_cannot_be_read_is_an_error(ml: Path, form: str) -> None:
    with pytest.raises(CodeError, match=r"^SAGEMAKER_SUBMIT_DIRECTORY: "):
        find(ml, submit_directory=form.format(ml))


def test_scripts_that_nothing_will_run_are_named(
    ml: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = put(ml / "model" / "code" / "serve.py")
    with caplog.at_level(logging.WARNING):
        assert find(ml) is None
    assert script in caplog.text and "SAGEMAKER_PROGRAM" in caplog.text


def test_a_wrong_setting_of_the_installation_is_one_of_the_configuration(ml: Path) -> None:
    with pytest.raises(ConfigError, match="SM_RUNTIME_INSTALL"):
        find(ml, {"SM_RUNTIME_INSTALL": "perhaps"})


@pytest.mark.parametrize(
    "text",
    [
        "handler = make()\n",
        "from helpers import handler\n",
        "from helpers import *\n",
        "import helpers as model_fn\n",
        "try:\n    pass\nexcept ImportError:\n    pass\nelse:\n    def handler(d, c): ...\n",
        "globals().update(handlers)\n",
        "async def handler(data, context): ...\n",
        "if True:\n    predict_fn = lambda data, model: data\n",
        "a, handler = 1, 2\n",
    ],
)
def test_every_way_to_define_a_handler_counts(tmp_path: Path, text: str) -> None:
    assert checked(text, tmp_path) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def input_hander(d, c): ...\n", "rename input_hander to input_handler"),
        ("def Handler(d, c): ...\n", "rename Handler to handler"),
        ("def predict(d, m): ...\n", "rename predict to predict_fn"),
        ("def modelfn(d): ...\n", "rename modelfn to model_fn"),
        ("def other(): ...\nclass Model:\n    def handler(self): ...\n", "it defines Model, other"),
        ("'''Nothing.'''\n", "it defines nothing"),
    ],
)
def test_without_a_handler_what_is_looked_for_and_what_was_near_is_said(
    tmp_path: Path, text: str, said: str
) -> None:
    found = checked(text, tmp_path)
    assert f"{tmp_path}/code/inference.py defines none of" in found
    assert "input_handler" in found and "model_fn" in found and said in found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def handler(data, context)\n    pass\n", ", line 1: SyntaxError: "),
        ("def handler(d, c):\n    print 'x'\n", ", line 2: SyntaxError: "),
        ("def handler(d, c):\n\tif d:\n        pass\n", ", line 3: TabError: "),
        ("return 1\ndef handler(d, c): ...\n", ", line 1: SyntaxError: 'return' outside function"),
        ("handler = 1\n\0", "null bytes"),
        ("# coding: nothing\nhandler = 1\n", "unknown encoding"),
    ],
)
def test_what_does_not_compile_is_one_sentence_with_file_and_line(
    tmp_path: Path, text: str, said: str
) -> None:
    found = checked(text, tmp_path)
    assert found.startswith(f"{tmp_path}/code/inference.py") and said in found
    assert "\n" not in found


def test_what_a_program_imports_from_its_folders_is_compiled_too(tmp_path: Path) -> None:
    bad = put(tmp_path / "code" / "lib" / "pkg" / "deep.py", "def broken(:\n")
    put(tmp_path / "code" / "lib" / "pkg" / "__init__.py", "")
    put(tmp_path / "code" / "helpers.py", "from pkg import deep\nimport inference\nimport json\n")
    found = checked("import helpers\n" + HANDLER, tmp_path)
    assert found.startswith(f"{bad}, line 1: SyntaxError")


def test_what_is_not_imported_may_be_for_another_python(tmp_path: Path) -> None:
    put(tmp_path / "code" / "old.py", "print 'x'\n")
    assert checked(HANDLER, tmp_path) == ""

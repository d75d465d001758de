"""The user's handlers in both styles: what they are given, what becomes of what they return."""

from __future__ import annotations

import json
import logging
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest

from sm_runtime.job.errors import CodeError
from sm_runtime.serving import coding, handlers
from sm_runtime.serving.code import OwnCode
from sm_runtime.serving.coding import CSV, JSON, NPY
from sm_runtime.serving.context import Surroundings
from sm_runtime.serving.handlers import Handlers
from sm_runtime.serving.values import ATTRIBUTES, Answer, Request, RequestError


@pytest.fixture(autouse=True)
def _imports_are_undone(tmp_path: Path) -> Iterator[None]:
    path, finders = list(sys.path), list(sys.meta_path)
    yield
    sys.path[:], sys.meta_path[:] = path, finders
    ours = (str(tmp_path), handlers._STANDIN)
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(ours):
            del sys.modules[name]


def double(request: Request) -> Answer:
    """A model with one input and one output, in the forms of TensorFlow Serving."""
    if request.headers.get("content-type") == NPY:
        rows = coding.decode(request.body, NPY)
    else:
        body = json.loads(bytes(request.body))
        if "instances" not in body:
            raise RequestError("the body has no instances")
        rows = numpy.array(body["instances"])
        if rows.dtype.kind not in "if":
            return failed("input x: expected numbers")
    found = json.dumps({"predictions": (2 * rows).tolist()}).encode()
    headers = {"content-type": JSON, "x-path": request.path}
    return Answer(headers=headers, body=found)


def failed(text: str) -> Answer:
    return Answer(
        status=400, headers={"content-type": JSON}, body=json.dumps({"error": text}).encode()
    )


def loaded(
    folder: Path, text: str, predict: Any = double, name: str = "inference.py", **more: Any
) -> Handlers:
    program = folder / "code" / name
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(textwrap.dedent(text))
    code = OwnCode(directory=str(program.parent), program=str(program))
    around = Surroundings(model_dir=str(folder), rest_port=8501, **more)
    return handlers.load(code, around, predict)


def asked(body: bytes | str, kind: str = JSON, accept: str = "", **headers: str) -> Request:
    found = {"content-type": kind, **({"accept": accept} if accept else {}), **headers}
    return Request(headers=found, body=body if isinstance(body, bytes) else body.encode())


def error(answer: Answer) -> str:
    assert answer.headers["content-type"] == JSON
    return str(json.loads(answer.body)["error"])


PAIR = """
    import json

    def input_handler(data, context):
        assert context.request_content_type == "text/csv", context.request_content_type
        rows = [[float(x) for x in line.split(",")] for line in data.read().decode().splitlines()]
        return json.dumps({"instances": rows})

    def output_handler(response, context):
        if response.status_code != 200:
            raise ValueError(response.content.decode("utf-8"))
        return response.content, context.accept_header
"""


def test_what_comes_before_and_after_the_prediction(tmp_path: Path) -> None:
    answer = loaded(tmp_path, PAIR)(asked("1,2\n3,4\n", "text/csv; charset=utf-8"))
    assert json.loads(answer.body) == {"predictions": [[2, 4], [6, 8]]}
    assert answer.status == 200 and answer.headers["content-type"] == JSON


def test_a_clients_fault_that_output_handler_raises_for_stays_one(tmp_path: Path) -> None:
    text = PAIR.replace("float(x)", "x")
    answer = loaded(tmp_path, text)(asked("a,b", CSV))
    assert (answer.status, error(answer)) == (400, "input x: expected numbers")


def test_either_of_the_two_may_be_absent(tmp_path: Path) -> None:
    before = "def input_handler(data, context): return b'{\"instances\": [1, 2]}'"
    answer = loaded(tmp_path, before)(asked("", "image/png"))
    assert json.loads(answer.body) == {"predictions": [2, 4]}
    assert answer.headers["x-path"] == "/v1/models/model:predict"
    after = "def output_handler(response, context): return str(response.json()), 'text/plain'"
    answer = loaded(tmp_path, after)(asked('{"instances": [3]}', accept="text/plain"))
    assert answer.body == b"{'predictions': [6]}"


def test_output_handler_gets_what_requests_gives(tmp_path: Path) -> None:
    text = """
        import requests

        def output_handler(response, context):
            assert isinstance(response, requests.Response) and response.ok
            response.raise_for_status()
            assert response.headers["Content-Type"] == "application/json"
            assert response.url == context.rest_uri
            return response.text
    """
    answer = loaded(tmp_path, text)(asked('{"instances": [1]}'))
    assert answer.body == b'{"predictions": [2]}'


def test_without_requests_a_response_looks_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "requests", None)
    answer = loaded(tmp_path, PAIR)(asked("1", CSV))
    assert json.loads(answer.body) == {"predictions": [[2]]}
    text = "def output_handler(r, context): r.raise_for_status(); return r.text + r.json()"
    assert loaded(tmp_path, text)(asked('{"instances": ["a"]}')).status == 400


def test_handler_does_it_all_and_the_rest_is_said_to_be_unused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = PAIR + "\n    def handler(data, context): return data.read()[::-1], 'text/plain'\n"
    with caplog.at_level(logging.INFO):
        answer = loaded(tmp_path, text)(asked(b"abc", "application/x-image"))
    assert (answer.body, answer.headers["content-type"]) == (b"cba", "text/plain")
    assert f"{tmp_path}/code/inference.py: handlers taken: handler" in caplog.text
    assert "not used: input_handler, output_handler, as handler is there" in caplog.text


def test_data_can_be_read_in_all_ways_of_a_stream(tmp_path: Path) -> None:
    text = """
        def handler(data, context):
            lines = [data.readline(), next(iter(data)), data.read(1), data.read(), data.read()]
            return repr(lines)
    """
    answer = loaded(tmp_path, text)(asked(b"a\nb\ncd"))
    assert answer.body.decode() == repr([b"a\n", b"b\n", b"c", b"d", b""])


def test_the_context_has_the_documented_fields(tmp_path: Path) -> None:
    text = """
        def handler(data, context):
            names = ["model_name", "model_version", "method", "rest_uri", "custom_attributes",
                     "request_content_type", "accept_header", "content_length", "timeout"]
            return {name: getattr(context, name) for name in names}
    """
    handle = loaded(tmp_path, text)
    said = "tfs-model-name=half,tfs-model-version=2,tfs-method=classify,trace=1;x"
    answer = handle(asked(b"1,2", CSV, JSON, **{ATTRIBUTES: said}))
    assert json.loads(answer.body) == {
        "model_name": "half",
        "model_version": "2",
        "method": "classify",
        "rest_uri": "http://localhost:8501/v1/models/half/versions/2:classify",
        "custom_attributes": said,
        "request_content_type": CSV,
        "accept_header": JSON,
        "content_length": 3,
        "timeout": 60.0,
    }
    plain = json.loads(handle(Request()).body)
    assert plain["rest_uri"] == "http://localhost:8501/v1/models/model:predict"
    assert plain["request_content_type"] == plain["accept_header"] == JSON
    assert plain["custom_attributes"] is None and plain["method"] is None


def test_the_context_is_unpacked_as_a_named_tuple(tmp_path: Path) -> None:
    text = """
        def handler(data, context):
            name, version, method, uri, port, channel, custom, kind, accept, length = context
            assert context._asdict()["rest_uri"] == uri == context[3] and len(context) == 10
            return [context._fields[0], name, port, kind]
    """
    assert json.loads(loaded(tmp_path, text)(asked("x")).body) == [
        "model_name",
        "model",
        None,
        JSON,
    ]


@pytest.mark.parametrize("name", ["channel", "grpc_port", "grpc_uri"])
def test_without_grpc_to_ask_for_it_says_what_else_there_is(tmp_path: Path, name: str) -> None:
    answer = loaded(tmp_path, f"def handler(data, context): return context.{name}")(asked("x"))
    assert answer.status == 500 and "use context.rest_uri" in error(answer)


def test_custom_attributes_are_opaque_and_can_be_set_on_the_answer(tmp_path: Path) -> None:
    text = """
        def handler(data, context):
            context.set_response_header("X-Amzn-SageMaker-Custom-Attributes",
                                        context.custom_attributes)
            return data
    """
    answer = loaded(tmp_path, text)(asked("body", **{ATTRIBUTES: "trace=1;x"}))
    assert answer.headers[ATTRIBUTES] == "trace=1;x" and answer.body == b"body"


def test_the_pair_answers_with_the_headers_and_the_status_that_were_set(tmp_path: Path) -> None:
    text = """
        def input_handler(data, context):
            context.set_response_header(0, "X-A", "1")
            context.set_response_status(code=201, phrase="Created")
            return data
    """
    answer = loaded(tmp_path, text)(asked('{"instances": [1]}'))
    assert answer.status == 201 and answer.headers["x-a"] == "1"
    assert json.loads(answer.body) == {"predictions": [2]}


def test_a_header_cannot_smuggle_another_one(tmp_path: Path) -> None:
    text = "def handler(data, c): c.set_response_header('X-A', 'b\\r\\nX-B: c'); return 'x'"
    answer = loaded(tmp_path, text)(asked("x"))
    assert answer.status == 500 and "ValueError" in error(answer)


@pytest.mark.parametrize(
    ("returned", "body", "kind"),
    [
        ("'text'", b"text", JSON),
        ("b'bytes', 'image/png'", b"bytes", "image/png"),
        ("bytearray(b'x'), None", b"x", JSON),
        ("None", b"", JSON),
        ("{'a': 1}", b'{"a": 1}', JSON),
        ("[1, 2]", b"[1, 2]", JSON),
        ("(1, 2)", b"[1, 2]", JSON),
        ("numpy.arange(2), 'text/csv'", b"0\n1\n", CSV),
        ("numpy.float32(0.5)", b"0.5", JSON),
        ("io.BytesIO(b'stream')", b"stream", JSON),
    ],
)
def test_what_is_returned_becomes_a_body(
    tmp_path: Path, returned: str, body: bytes, kind: str
) -> None:
    text = f"import io, numpy\ndef handler(data, context):\n    return {returned}\n"
    answer = loaded(tmp_path, text)(asked("x"))
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, body, kind)


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        ("ValueError('bad\\n  pixel')", 500, "ValueError: bad pixel (inference.py:6)"),
        ("KeyError('a')", 500, "KeyError: 'a' (inference.py:6)"),
        ("AssertionError", 500, "AssertionError (inference.py:6)"),
        ("SystemExit(3)", 500, "SystemExit: 3 (inference.py:6)"),
        ("errors.GenericInferenceToolkitError(422, 'too dark')", 422, "too dark"),
        ("errors.GenericInferenceToolkitError(503)", 503,
         "GenericInferenceToolkitError: Invalid Request (inference.py:6)"),
        ("Mine('teapot')", 418, "teapot"),
        ("errors.UnsupportedFormatError('a/b')", 415, "Content type a/b is not supported"),
    ],
)  # fmt: skip
def test_what_is_raised_is_an_answer(
    tmp_path: Path, raised: str, status: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = (
        "from sagemaker_inference import errors\n\nclass Mine(Exception):\n    status_code = 418\n"
    )
    text += f"def handler(data, context):\n    raise {raised}\n"
    answer = loaded(tmp_path, text)(asked("x"))
    assert answer.status == status
    assert error(answer).startswith(said)
    assert ("Traceback" in caplog.text) == (status >= 500)


def test_the_line_that_is_named_is_the_innermost_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "helpers.py").write_text(
        "import json\n\ndef read(x):\n    return json.loads(x)\n"
    )
    text = "import helpers\ndef handler(data, context):\n    return helpers.read('{')\n"
    assert error(loaded(tmp_path, text)(asked("x"))).endswith("(helpers.py:4)")


TOOLKIT = """
    import numpy

    def model_fn(model_dir):
        return {"factor": 3, "from": model_dir}

    def predict_fn(data, model):
        return data * model["factor"]
"""


@pytest.mark.parametrize(
    ("body", "kind", "accept", "expected"),
    [
        ("[[1, 2]]", JSON, "", (b"[[3, 6]]", JSON)),
        ('{"instances": [1]}', JSON, "*/*", (b"[3]", JSON)),
        ("1,2\n", CSV, JSON, (b"[[3.0, 6.0]]", JSON)),
        ("1,2\n3,4\n", "text/csv; charset=utf-8", CSV, (b"3.0,6.0\n9.0,12.0\n", CSV)),
        ("[1, 2]", JSON, "text/csv, application/json;q=0.5", (b"3\n6\n", CSV)),
    ],
)
def test_the_toolkits_defaults_read_and_write(
    tmp_path: Path, body: str, kind: str, accept: str, expected: tuple[bytes, str]
) -> None:
    answer = loaded(tmp_path, TOOLKIT, None)(asked(body, kind, accept))
    assert (answer.body, answer.headers["content-type"]) == expected


def test_npy_goes_in_and_out_bit_for_bit(tmp_path: Path) -> None:
    array = numpy.arange(6, dtype="<f4").reshape(2, 3) / 7
    for order in ("C", "F"):
        body = coding.encode(numpy.asarray(array, order=order), NPY)  # type: ignore[call-overload]
        answer = loaded(tmp_path, TOOLKIT, None)(asked(body, NPY, NPY))
        found = coding.decode(answer.body, NPY)
        assert found.dtype == array.dtype and (found == array * 3).all()


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", JSON, 400),
        (b"\xff", JSON, 400),
        (b"[[1], [1, 2]]", JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b"1,a\n", CSV, 400),
        (b"1,2\n3\n", CSV, 400),
        (b"", CSV, 400),
        (b"\x93NUMPY", NPY, 400),
        (b"\x93NUMPY\x01\x00\x0a\x00{'descr':1", NPY, 400),
        (b"x", "image/png", 415),
        (b"x", "application/x-npz", 415),
    ],
)
def test_bodies_that_cannot_be_read_are_the_clients_fault(
    tmp_path: Path, body: bytes, kind: str, status: int
) -> None:
    answer = loaded(tmp_path, TOOLKIT, None)(asked(body, kind))
    assert answer.status == status and error(answer)


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "pwned"), "w"))

    import io

    stream = io.BytesIO()
    numpy.save(stream, numpy.array([Evil()], dtype=object), allow_pickle=True)
    answer = loaded(tmp_path, TOOLKIT, None)(asked(stream.getvalue(), NPY))
    assert answer.status == 400 and "pickle" in error(answer)
    text = (
        "from sagemaker_inference import decoder\n"
        "def handler(data, context): return decoder.decode(data.read(), 'application/x-npy')\n"
    )
    assert loaded(tmp_path, text, None)(asked(stream.getvalue(), NPY)).status == 500
    assert not (tmp_path / "pwned").exists()


def test_a_header_that_promises_too_much_takes_no_memory(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    body = b"\x93NUMPY\x01\x00" + (len(header)).to_bytes(2, "little") + header
    answer = loaded(tmp_path, TOOLKIT, None)(asked(body, NPY))
    assert answer.status == 400 and "where its header says" in error(answer)


def test_an_accept_that_cannot_be_met_is_406_before_anything_is_computed(tmp_path: Path) -> None:
    text = TOOLKIT.replace("return data *", "raise SystemExit; return data *")
    answer = loaded(tmp_path, text, None)(asked("[1]", JSON, "image/png"))
    assert answer.status == 406 and CSV in error(answer)


def test_all_functions_are_called_in_order_with_and_without_the_context(tmp_path: Path) -> None:
    text = """
        seen = []

        def pre_model_fn(model_dir): seen.append("pre")
        def model_fn(model_dir, context): seen.append(context.system_properties["model_dir"])
        def model_warmup_fn(model_dir, model): seen.append("warm")
        def input_fn(body, content_type, context=None):
            seen.append(context.get_request_header(0, "X-Trace"))
            return type(body).__name__, content_type
        def predict_fn(data, model, device="cpu"): return [*data, device]
        def output_fn(prediction, accept, context):
            context.request_processor[0].add_response_property("X-Seen", len(seen))
            return repr((prediction, accept)), "text/plain"
    """
    handle = loaded(tmp_path, text)
    module: ModuleType = sys.modules["inference"]
    assert module.seen == ["pre", str(tmp_path), "warm"]
    answer = handle(asked("[]", "application/json;charset=UTF-8", "a/b", **{"x-trace": "7"}))
    assert answer.body.decode() == "(['str', 'application/json', 'cpu'], 'a/b')"
    named = {"x-sm-runtime-model": "model"}
    assert answer.headers == {"content-type": "text/plain", "x-seen": "4", **named}
    assert handle(asked(b"x", "image/png")).body.startswith(b"(['bytes', 'image/png'")


def test_transform_fn_does_the_work_of_the_other_three(tmp_path: Path) -> None:
    text = """
        def model_fn(model_dir): return 5
        def transform_fn(model, body, content_type, accept): return f"{model} {body}", accept
    """
    answer = loaded(tmp_path, text)(asked("1,2", CSV, "text/plain"))
    assert (answer.body, answer.headers["content-type"]) == (b"5 1,2", "text/plain")


def test_without_predict_fn_the_models_own_method_is_used(tmp_path: Path) -> None:
    text = """
        class Model:
            def predict(self, data): return data + 1
        def model_fn(model_dir): return Model()
    """
    assert loaded(tmp_path, text, None)(asked("[1]")).body == b"[2]"
    text = "def model_fn(model_dir): return lambda data: data + 2"
    assert loaded(tmp_path, text, None)(asked("[1]")).body == b"[3]"


def test_without_model_fn_the_tensorflow_model_is_asked(tmp_path: Path) -> None:
    text = "def predict_fn(data, model): return model.predict(data) + 1"
    handle = loaded(tmp_path, text)
    assert handle(asked("[[1, 2]]")).body == b"[[3, 5]]"
    assert error(handle(asked('["a"]'))) == "input x: expected numbers"
    text = "def input_fn(body, content_type): return [len(body)]"
    assert loaded(tmp_path, text)(asked("abc", CSV)).body == b"[6]"
    text = "def output_fn(prediction, accept): return str(prediction.tolist()), 'text/plain'"
    assert loaded(tmp_path, text)(asked('{"instances": [4]}')).body == b"[8]"
    text = "def pre_model_fn(model_dir): pass"
    assert json.loads(loaded(tmp_path, text)(asked('{"instances": [4]}')).body) == {
        "predictions": [8]
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_of_this_name", "code/requirements.txt"),
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named"),
        ("x = 1\nraise RuntimeError('no GPU')", "RuntimeError: no GPU (inference.py:2)"),
        ("import sys; sys.exit('x')", "SystemExit: x (inference.py:1)"),
        ("def input_hander(a, b): ...", "rename input_hander to input_handler"),
        ("handler = None", "defines none of the functions"),
        ("def handler(data): ...", "handler in {} has to take (data, context)"),
        ("def handler(a, b, c): ...", "handler in {} has to take (data, context)"),
        ("def model_fn(): ...", "model_fn in {} takes ()"),
        ("def model_fn(d): ...\ndef predict_fn(data): ...", "predict_fn in {} takes (data)"),
        ("def model_fn(d): ...\ndef predict_fn(a, b, c, d): ...", "takes (a, b, c, d)"),
        ("def model_fn(d): raise OSError('x')", "model_fn of {}: OSError: x (inference.py:1)"),
        ("def model_fn(d): return 1", "define predict_fn(data, model)"),
        ("def predict_fn(a, b): ...", "define model_fn(model_dir)"),
        ("def input_handler(a, b): ...", "need a TensorFlow model"),
        ("def transform_fn(a, b, c, d): ...\ndef input_fn(a, b): ...",
         "has transform_fn and input_fn"),
    ],
)  # fmt: skip
def test_code_that_cannot_serve_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CodeError) as caught:
        loaded(tmp_path, text, None)
    assert said.format(tmp_path / "code" / "inference.py") in str(caught.value)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_near_miss_beside_a_handler_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded(tmp_path, PAIR.replace("output_handler", "output_hander"))
    assert "output_hander is not used; did you mean output_handler?" in caplog.text


@pytest.mark.parametrize("name", ["my-infer.py", "json.py", "src/inference.py"])
def test_any_file_can_be_the_program(tmp_path: Path, name: str) -> None:
    text = "import json\ndef handler(data, context): return json.dumps(1)"
    if name == "json.py":
        text = "def handler(data, context): return '1'"
    assert loaded(tmp_path, text, name=name)(asked("x")).body == b"1"


def test_the_toolkits_names_can_be_imported(tmp_path: Path) -> None:
    text = """
        from sagemaker_inference import content_types, decoder, default_inference_handler, encoder
        from sagemaker_inference import errors, utils

        class Mine(default_inference_handler.DefaultInferenceHandler):
            def default_predict_fn(self, data, model, context=None): return data * 2

        def transform_fn(model, body, content_type, accept):
            mine = Mine()
            data = mine.default_input_fn(body, content_type)
            return mine.default_output_fn(mine.default_predict_fn(data, model), accept)
    """
    assert loaded(tmp_path, text)(asked("[1, 2]", accept=JSON)).body == b"[2, 4]"
    assert loaded(tmp_path, text)(asked("1,2", CSV, CSV)).body == b"2\n4\n"


@pytest.mark.parametrize(
    ("asked_for", "named"),
    [
        ("", "half/3"),
        ("tfs-model-version=2", "half/2"),
        ("tfs-model-name=other", "other"),
        ("tfs-model-name=other,tfs-model-version=7", "other/7"),
    ],
)
def test_an_answer_names_the_model_that_was_asked(
    tmp_path: Path, asked_for: str, named: str
) -> None:
    text = "def handler(data, context): return b'', 'text/plain'\n"
    handle = loaded(tmp_path, text, model_name="half", model_version="3")
    headers = {"x-amzn-sagemaker-custom-attributes": asked_for}
    assert handle(asked("{}", JSON, **headers)).headers["x-sm-runtime-model"] == named

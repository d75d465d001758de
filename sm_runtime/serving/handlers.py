"""The user's handlers: taken from a module, and made into one function that answers requests.

Only a worker imports this. Two styles are served: ``handler`` or ``input_handler`` and
``output_handler`` of AWS's TensorFlow image, ``model_fn`` and its like of SageMaker's inference
toolkit.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar, TypeAlias

from sm_runtime.job.errors import CodeError, JobError
from sm_runtime.serving import code as own_code
from sm_runtime.serving.code import OF_TENSORFLOW, OwnCode
from sm_runtime.serving.coding import (
    arrays,
    check_accept,
    decode,
    encode,
    numpy,
    response,
)
from sm_runtime.serving.context import Context, Surroundings
from sm_runtime.serving.media import CSV, JSON, NPY, base_type
from sm_runtime.serving.values import MODEL_HEADER, Answer, Request, RequestError, error_answer

log = logging.getLogger(__name__)

Predict: TypeAlias = Callable[[Request], Answer]
"""Answers a request with the TensorFlow model, as if there were no own code."""
Handler: TypeAlias = Callable[..., Any]
_NUMBERS = "biufc"
"""The kinds of numpy's dtypes that npy carries as the model takes them."""
_TEXT = (JSON, CSV)
"""What the toolkit hands to handlers as ``str``."""
_STANDIN = os.path.join(os.path.dirname(os.path.dirname(__file__)), "inject", "standin")


def load(code: OwnCode, around: Surroundings, predict: Predict | None = None) -> Handlers:
    """Import the program, load the user's model, and return what answers requests.

    ``predict`` is None where there is no TensorFlow model. Raises CodeError in one sentence, also
    for whatever the user's code raises.
    """
    module = _import(code)
    taken = {name: f for name in own_code.HANDLERS if callable(f := getattr(module, name, None))}
    if not taken:
        raise CodeError(own_code.no_handler(code.program, _functions(module)))
    for name in sorted(_functions(module)):
        handler = own_code.meant(name)
        if handler and handler not in taken:
            log.warning("%s: %s is not used; did you mean %s?", code.program, name, handler)
    style: _TensorFlowStyle | _ToolkitStyle
    if any(name in taken for name in OF_TENSORFLOW):
        style = _TensorFlowStyle(code, taken, predict)
    else:
        style = _ToolkitStyle(code, taken, around, predict)
    unused = [name for name in taken if name not in style.used]
    log.info("%s: handlers taken: %s", code.program, ", ".join(style.used))
    if unused:
        log.warning(
            "%s: not used: %s, as %s is there",
            code.program,
            ", ".join(unused),
            style.used[0],
        )
    return Handlers(code, around, style)


def check_imports(code: OwnCode) -> None:
    """Raise CodeError where a module is missing that the program imports before all else.

    So that it is known before TensorFlow has loaded a model. What comes after another statement, or
    after a module of the user's own, is not looked at: that may alter the path.
    """
    _make_importable(code)
    before: list[str] = []
    for name in own_code.first_imports(code):
        if not (_is_there(name) or _comes_with(before, name)):
            raise CodeError(
                f"{code.program} cannot be imported: there is no module named"
                f" {name!r}{_remedy(code, name)}"
            )
        before.append(name)


def _is_there(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _comes_with(packages: Sequence[str], name: str) -> bool:
    """Return whether a module is there once these are imported: some add to the path."""
    try:
        for package in packages:
            importlib.import_module(package)
    except Exception:  # which the program's own import tells
        return True
    return _is_there(name)


class Handlers:
    """Answers requests with the user's code; may be called by several threads."""

    def __init__(
        self, code: OwnCode, around: Surroundings, style: _TensorFlowStyle | _ToolkitStyle
    ) -> None:
        self._code = code
        self._around = around
        self._style = style

    def __call__(self, request: Request) -> Answer:
        """Return the answer to a request; whatever is raised becomes one, too."""
        context = Context(self._around, request)
        try:
            return _answer(self._style.call(request, context), context)
        except RequestError as error:
            return error_answer(error.status, str(error))
        except (Exception, SystemExit) as error:
            return self._failure(error)

    def _failure(self, error: BaseException) -> Answer:
        status = _status(error)
        if status < 500:
            return error_answer(status, _message(error))
        log.error("a handler failed", exc_info=error)
        return error_answer(status, _described(error, self._code))


class _TensorFlowStyle:
    """``handler(data, context)``, or what comes before and after the model's prediction."""

    def __init__(self, code: OwnCode, taken: Mapping[str, Handler], predict: Predict | None):
        self._handler = taken.get("handler")
        pair = [name for name in ("input_handler", "output_handler") if name in taken]
        self.used = ["handler"] if self._handler else pair
        if predict is None and not self._handler:
            raise CodeError(
                f"{code.program} has {' and '.join(pair)}, which need a TensorFlow model beside,"
                " and there is none: define handler(data, context), or model_fn and predict_fn"
            )
        for name in self.used:
            try:
                inspect.signature(taken[name]).bind(None, None)
            except ValueError:
                pass  # of a compiled function nothing is known
            except TypeError as error:
                raise CodeError(
                    f"{name} in {code.program} has to take (data, context): {error}"
                ) from error
        self._input = taken.get("input_handler")
        self._output = taken.get("output_handler")
        self._predict = predict

    def call(self, request: Request, context: Context) -> Any:
        """Return what the handlers return, or the model's answer where none comes after it."""
        data = io.BytesIO(request.body)
        if self._handler is not None:
            return _run(self._handler, data, context)
        assert self._predict is not None
        answer = self._predict(self._asked(request, data, context))
        if self._output is None:
            return answer
        try:
            return _run(self._output, response(answer, context.rest_uri), context)
        except Exception as error:
            # Handlers raise ValueError for whatever is not 200: a client's fault stays one.
            if answer.status < 400 or _status(error) != 500:
                raise
            log.info("output_handler failed on the model's answer %s", answer.status)
            return answer

    def _asked(self, request: Request, data: io.BytesIO, context: Context) -> Request:
        """Return the request to the model."""
        headers = dict(request.headers)
        if self._output is not None:
            headers["accept"] = JSON
        if self._input is None:
            return Request(headers=headers, body=request.body)
        body = _body(_run(self._input, data, context), JSON)
        # As in AWS's image, it is TensorFlow Serving's JSON whatever the client's type is.
        headers |= {"content-type": JSON, "accept": JSON}
        return Request(path=context.rest_path, headers=headers, body=body)


class _ToolkitStyle:
    """``model_fn``, then ``input_fn``, ``predict_fn``, ``output_fn`` or ``transform_fn``."""

    _ARGUMENTS: ClassVar[dict[str, int]] = {
        "pre_model_fn": 1,
        "model_fn": 1,
        "model_warmup_fn": 2,
        "input_fn": 2,
        "predict_fn": 2,
        "output_fn": 2,
        "transform_fn": 4,
    }

    def __init__(
        self,
        code: OwnCode,
        taken: Mapping[str, Handler],
        around: Surroundings,
        predict: Predict | None,
    ) -> None:
        self.used = [name for name in self._ARGUMENTS if name in taken]
        self._code = code
        self._taken = taken
        self._tensorflow = predict if "model_fn" not in taken else None
        clash = [name for name in ("input_fn", "predict_fn", "output_fn") if name in taken]
        if "transform_fn" in taken and clash:
            raise CodeError(
                f"{code.program} has transform_fn and {', '.join(clash)}: transform_fn does the"
                " work of all three, so remove it or them"
            )
        self._contexts = {
            name: _takes_context(taken[name], count, f"{name} in {code.program}")
            for name, count in self._ARGUMENTS.items()
            if name in taken
        }
        self._model = self._load(around, predict)

    def call(self, request: Request, context: Context) -> Any:
        """Return what the last of the functions returns."""
        kind, accept = context.request_content_type, context.accept_header
        if "transform_fn" in self._taken:
            body = _decoded_text(request, kind)
            return self._call("transform_fn", (self._model, body, kind, accept), context)
        if "output_fn" not in self._taken and self._tensorflow is None:
            check_accept(accept)
        if self._tensorflow and not {"input_fn", "predict_fn"}.intersection(self._taken):
            if "output_fn" not in self._taken:
                return self._tensorflow(request)
            prediction = self._model.predict_request(request)
        else:
            prediction = self._prediction(request, context)
        if "output_fn" in self._taken:
            return self._call("output_fn", (prediction, accept), context)
        return prediction if isinstance(prediction, Answer) else (encode(prediction, accept), None)

    def _prediction(self, request: Request, context: Context) -> Any:
        kind = context.request_content_type
        if "input_fn" in self._taken:
            body = _decoded_text(request, kind)
            data = self._call("input_fn", (body, kind), context)
        else:
            data = decode(request.body, kind)
        if "predict_fn" in self._taken:
            return self._call("predict_fn", (data, self._model), context)
        predict = getattr(self._model, "predict", None) or self._model
        return predict(data)

    def _load(self, around: Surroundings, predict: Predict | None) -> Any:
        context = Context(around)
        self._loading("pre_model_fn", (around.model_dir,), context)
        if "model_fn" in self._taken:
            model = self._loading("model_fn", (around.model_dir,), context)
        elif predict is not None:
            model = TensorFlowModel(predict)
        else:
            raise CodeError(
                f"{self._code.program} has {', '.join(self.used)} and no model_fn, and"
                f" {around.model_dir} holds no TensorFlow model: define model_fn(model_dir)"
            )
        is_used = {"predict_fn", "transform_fn"}.intersection(self._taken)
        if not (is_used or callable(getattr(model, "predict", model))):
            raise CodeError(
                f"{self._code.program}: model_fn returned a {type(model).__name__}, which has no"
                " method predict and cannot be called: define predict_fn(data, model)"
            )
        self._loading("model_warmup_fn", (around.model_dir, model), context)
        return model

    def _loading(self, name: str, arguments: tuple[Any, ...], context: Context) -> Any:
        if name not in self._taken:
            return None
        try:
            return self._call(name, arguments, context)
        except JobError:
            raise
        except (Exception, SystemExit) as error:
            log.debug("%s failed", name, exc_info=error)
            raise CodeError(
                f"{name} of {self._code.program}: {_described(error, self._code)}"
            ) from error

    def _call(self, name: str, arguments: tuple[Any, ...], context: Context) -> Any:
        more = (context,) if self._contexts[name] else ()
        return _run(self._taken[name], *arguments, *more)


class TensorFlowModel:
    """What ``predict_fn`` gets for a model where ``model_fn`` is absent: the image's own."""

    def __init__(self, predict: Predict) -> None:
        self._predict = predict

    def predict(self, data: Any) -> Any:
        """Return the outputs for inputs: an array or a list of instances, or arrays by name.

        An array where the model has one output, else arrays by name.
        """
        if isinstance(data, numpy().ndarray) and data.dtype.kind in _NUMBERS:
            body, kind = encode(data, NPY), NPY
        else:
            if not isinstance(data, Mapping):
                data = {"instances": data}
            elif not {"instances", "inputs", "examples"}.intersection(data):
                data = {"inputs": data}
            body, kind = encode(data, JSON), JSON
        return self.predict_request(Request(headers={"content-type": kind}, body=body))

    __call__ = predict

    def predict_request(self, request: Request) -> Any:
        """Return the same for a client's request. Raises RequestError as the model's answer is."""
        headers = {**request.headers, "accept": JSON}
        answer = self._predict(Request(headers=headers, body=request.body))
        found = json.loads(answer.body)
        if answer.status >= 400:
            raise RequestError(str(found.get("error", found)), answer.status)
        return arrays(found)


def _decoded_text(request: Request, content_type: str) -> str | bytes:
    body = bytes(request.body)
    if base_type(content_type) not in _TEXT:
        return body
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is no UTF-8 text: {error}") from error


def _run(function: Handler, *arguments: Any) -> Any:
    result = function(*arguments)
    if inspect.iscoroutine(result):
        import asyncio

        return asyncio.run(result)
    return result


def _answer(result: Any, context: Context) -> Answer:
    """Return what a handler has returned as an answer: ``(body, content type)`` or a body."""
    reply = context.reply
    if isinstance(result, Answer):
        headers = {**result.headers, **reply.headers}  # the model's own name is among them
        return Answer(status=reply.status or result.status, headers=headers, body=result.body)
    kind = None
    if isinstance(result, tuple) and len(result) == 2 and _is_type(result[1]):
        result, kind = result
    kind = kind or reply.headers.get("content-type") or context.accept_header
    body = _body(result, kind)
    headers = {MODEL_HEADER: context.model, **reply.headers, "content-type": kind}
    return Answer(status=reply.status or 200, headers=headers, body=body)


def _is_type(value: Any) -> bool:
    return value is None or (isinstance(value, str) and "/" in value)


def _body(value: Any, content_type: str) -> bytes:
    """Return what a handler gives as a body; other values are written as the type says."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        return value.encode()
    if value is None:
        return b""
    if callable(read := getattr(value, "read", None)):
        return _body(read(), content_type)
    if isinstance(content := getattr(value, "content", None), bytes):
        return content  # a response of requests
    if base_type(content_type) in (JSON, CSV, NPY):
        return encode(value, content_type)
    raise TypeError(
        f"a handler returned a {type(value).__name__} as a body of {content_type}: return bytes or"
        " str"
    )


def _status(error: BaseException) -> int:
    status = getattr(error, "status_code", None)
    is_status = isinstance(status, int) and not isinstance(status, bool) and 400 <= status < 600
    if is_status and status is not None:
        return int(status)
    # sagemaker-inference's own has no status.
    return 415 if type(error).__name__ == "UnsupportedFormatError" else 500


def _message(error: BaseException) -> str:
    own = getattr(error, "message", None)
    return own if isinstance(own, str) and own else str(error)


def _described(error: BaseException, code: OwnCode) -> str:
    """Return ``class: message (file:line)`` with the innermost line of the user's own."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename.startswith(tuple(f"{d}/" for d in code.search_path))]
    where = ""
    if frames:
        frame = (own or frames)[-1]
        inside = frame.filename.startswith(code.directory + "/")
        name = os.path.relpath(frame.filename, code.directory) if inside else frame.filename
        where = f" ({name}:{frame.lineno})"
    message = " ".join(_message(error).split())
    return type(error).__name__ + (f": {message}" if message else "") + where


def _import(code: OwnCode) -> ModuleType:
    """Return the program as a module; its folder comes first on the path."""
    _make_importable(code)
    name = os.path.splitext(os.path.basename(code.program))[0]
    if not name.isidentifier() or name in sys.modules:
        name = f"inference_{name}".replace("-", "_").replace(".", "_")
    spec = importlib.util.spec_from_file_location(name, code.program)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        remedy = ""
        if isinstance(error, ModuleNotFoundError) and error.name:
            remedy = _remedy(code, error.name.partition(".")[0])
        log.debug("%s cannot be imported", code.program, exc_info=error)
        raise CodeError(
            f"{code.program} cannot be imported: {_described(error, code)}{remedy}"
        ) from error
    return module


def _make_importable(code: OwnCode) -> None:
    sys.path[:0] = [folder for folder in code.search_path if folder not in sys.path]
    if not any(isinstance(finder, _StandIns) for finder in sys.meta_path):
        sys.meta_path.append(_StandIns())


def _remedy(code: OwnCode, package: str) -> str:
    return f": add {package} to {os.path.join(code.directory, 'requirements.txt')}"


class _StandIns:
    """Finds what is offered in the place of sagemaker-inference, behind all other finders."""

    @staticmethod
    def find_spec(
        name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "sagemaker_inference":
            return importlib.machinery.PathFinder.find_spec(name, [_STANDIN])
        return None


def _functions(module: ModuleType) -> set[str]:
    """Return the names of the functions that a module itself defines."""
    return {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    }


def _takes_context(function: Handler, count: int, where: str) -> bool:
    """Whether a handler takes ``context`` after ``count`` arguments; the toolkit's rule.

    A parameter with a default is the context only if its name says so. Raises CodeError where the
    function takes neither number of arguments.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False  # of a compiled function nothing is known
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    by_name = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if by_name or len(required) > count + 1 or (len(positional) < count and not any_number):
        named = ", ".join(p.name for p in (*positional, *by_name))
        raise CodeError(
            f"{where} takes ({named}): it is called with {count} arguments, or {count + 1}, the"
            " last one context"
        )
    if len(required) == count + 1:
        return True
    if len(positional) <= count:
        return False
    return positional[count].name.lower().strip("_") in ("context", "ctx")

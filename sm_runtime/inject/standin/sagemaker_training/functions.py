"""What functions of the user's take, and their exceptions."""

from __future__ import annotations

import inspect
from collections import namedtuple
from typing import Any, Callable, Mapping

from . import mapping

ArgSpec = namedtuple("ArgSpec", "args varargs keywords defaults")


def matching_args(fn: Callable[..., Any], dictionary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the items that ``fn`` has an argument for; all where it takes any."""
    found = getargspec(fn)
    if found.keywords:
        return dictionary
    included: Mapping[str, Any] = mapping.split_by_criteria(dictionary, found.args).included
    return included


def getargspec(fn: Callable[..., Any]) -> ArgSpec:
    """Return the names of a function's arguments, and their defaults."""
    found = inspect.getfullargspec(fn)
    return ArgSpec(found.args, found.varargs, found.varkw, found.defaults)


def error_wrapper(fn: Callable[..., Any], error_class: type[Exception]) -> Callable[..., Any]:
    """Return ``fn`` with its exceptions raised as ``error_class``."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except Exception as error:
            raise error_class(error).with_traceback(error.__traceback__) from None

    return wrapper

"""Functions given as source text: to bytes in the person's script, and called in the worker."""

from __future__ import annotations

import ast
import functools
import linecache
from typing import Any

import msgspec

from mep_sdk import encoding
from mep_sdk.errors import FunctionUnserializable
from mep_sdk.function_record import FunctionCode, SerializedFunction
from mep_sdk.function_serializer import serialize_function


def serialize_source(source: str, function_name: str) -> bytes:
    """Return the bytes of the function of this name in `source`, a module's text. Raises FunctionUnserializable."""
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise FunctionUnserializable(name=function_name, reason=f"its source is not Python: {error}") from error
    functions = [each for each in module.body if isinstance(each, ast.FunctionDef)]
    if not any(each.name == function_name for each in functions):
        there = ", ".join(each.name for each in functions) or "none"
        raise FunctionUnserializable(
            name=function_name, reason=f"its source defines no function of this name ({there})"
        )
    if len(module.body) == 1 and _is_plain(functions[0]):
        record = SerializedFunction(
            name=function_name,
            module="__main__",
            python=f"{encoding.PYTHON} (source text)",
            codes=(FunctionCode(function_name, b"", source=source),),
        )
        return encoding.frame(encoding.FUNCTION, msgspec.msgpack.encode(record))
    return serialize_function(functools.partial(call_source, source, function_name))


def _is_plain(function: ast.FunctionDef) -> bool:
    """Whether a worker can compile the function by itself: its defaults and decorators are values of the module."""
    return not (function.decorator_list or function.args.defaults or any(function.args.kw_defaults))


@functools.lru_cache(maxsize=64)
def _space(source: str) -> dict[str, Any]:
    filename = f"<source {hash(source) & 0xFFFF_FFFF:08x}>"
    lines = source.splitlines(keepends=True)
    linecache.cache[filename] = (len(source), None, lines, filename)  # for tracebacks
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, filename, "exec", dont_inherit=True), space)  # noqa: S102 - the person's own function
    return space


def call_source(source: str, function_name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a function of a module's text. Runs in the worker, which runs the text once."""
    return _space(source)[function_name](*args, **kwargs)

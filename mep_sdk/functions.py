"""Functions to self-describing bytes and back.

Most functions that people send use built-ins, modules and themselves only. Those travel as their marshalled
code object, which a worker of the same Python loads in microseconds, with their source text for a worker of
another Python (and for tracebacks). Everything else is cloudpickled, tagged with the Python that made it. Functions
of installed modules travel by reference, with their value behind it for workers that lack the module.

Loading runs no code of the person's besides what pickles and module imports do; the worker is theirs anyway.
"""

from __future__ import annotations

import builtins
import importlib
import marshal
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from mep_sdk import frames
from mep_sdk.errors import DataCorrupt, DataUnreadable, FunctionUnserializable
from mep_wire.errors import FunctionUnloadable, MepError

_MAX_SOURCE_CHARS = 64 * 1024
_MAX_FALLBACK_BYTES = 256 * 1024


class SerializedFunction(msgspec.Struct, frozen=True, array_like=True):
    """What the frame of a function holds. Either `code` is set, or `pickled`."""

    name: str
    module: str
    python: str
    code: bytes = b""
    """Marshalled code object, for the Python named in `python`."""
    defaults: bytes = b""
    """Frame of (defaults, keyword-only defaults)."""
    imports: tuple[tuple[str, str], ...] = ()
    """Modules that the code finds among its globals: (name there, module), and submodules as ("", module)."""
    itself: bool = False
    """Whether the code calls the function by its own name."""
    source: str = ""
    pickled: tuple[bytes, ...] = ()
    """Frames of the whole callable, in the order in which to try them."""


_decoder = msgspec.msgpack.Decoder(SerializedFunction)


class LoadedFunction(msgspec.Struct, frozen=True):
    """A function that can be called, with what its tracebacks need."""

    call: Callable[..., Any]
    name: str
    source: str = ""
    filename: str = ""
    first_line: int = 0


# --- to bytes, in the person's script -----------------------------------------------------------------


def serialize_function(function: Callable[..., Any]) -> bytes:
    """Return the bytes of a function or other callable. Raises FunctionUnserializable."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    _refuse_what_cannot_run(function, name)
    record = _by_code(function) if type(function) is types.FunctionType else None
    return frames.frame(frames.FUNCTION, msgspec.msgpack.encode(record or _by_pickle(function, name)))


def _refuse_what_cannot_run(function: object, name: str) -> None:
    import inspect

    if not callable(function):
        raise FunctionUnserializable(name=name, reason="it cannot be called")
    called = (function, getattr(type(function), "__call__"), getattr(function, "func", None))  # noqa: B004, B009
    if any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in called):
        reason = "it is an async function, and workers call plain ones; wrap it: def f(): return asyncio.run(g())"
        raise FunctionUnserializable(name=name, reason=reason)
    if inspect.isgeneratorfunction(function):
        raise FunctionUnserializable(name=name, reason="it is a generator; return a list instead")


def _by_code(function: types.FunctionType) -> SerializedFunction | None:
    """Return the function as its code object, or None where it needs more than that."""
    if function.__closure__ or function.__dict__ or not frames.needs_value(function.__module__ or "", local=True):
        return None
    needs = _global_needs(function)
    if needs is None:
        return None
    imports, itself = needs
    values = (function.__defaults__, function.__kwdefaults__)
    return SerializedFunction(
        name=function.__qualname__,
        module=function.__module__ or "__main__",
        python=frames.PYTHON,
        code=marshal.dumps(function.__code__),
        defaults=_dump(values, function.__qualname__) if any(values) else b"",
        imports=tuple(imports),
        itself=itself,
        source=_source(function.__code__),
    )


def _global_needs(function: types.FunctionType) -> tuple[list[tuple[str, str]], bool] | None:
    """Return the modules among the globals that a function uses, and whether it uses itself; None for any more."""
    space = function.__globals__
    names = set(_global_names(function.__code__))
    attributes = set(_attribute_names(function.__code__))
    imports: list[tuple[str, str]] = []
    itself = False
    for name in sorted(names & space.keys() - {"__name__"}):
        value = space[name]
        if value is function and name == function.__code__.co_name:
            itself = True
        elif isinstance(value, types.ModuleType) and _travels_by_name(value):
            imports.append((name, value.__name__))
            imports += [("", each) for each in _submodules(value, attributes)]
        elif getattr(builtins, name, space) is not value:
            return None
    return imports, itself


def _travels_by_name(module: types.ModuleType) -> bool:
    return sys.modules.get(module.__name__) is module and not frames.needs_value(module.__name__, local=True)


def _submodules(package: types.ModuleType, attributes: set[str]) -> list[str]:
    """Return the submodules that code reaches through a package's attributes, e.g. xml.etree by `import xml.etree`."""
    if not hasattr(package, "__path__"):
        return []
    prefix = package.__name__ + "."
    loaded = [name for name in list(sys.modules) if name.startswith(prefix)]
    return sorted(name for name in loaded if attributes.issuperset(name[len(prefix) :].split(".")))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a code object and all that are nested in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _global_names(code: types.CodeType) -> Iterator[str]:
    import dis

    for each in _codes(code):
        for instruction in dis.get_instructions(each):
            # A class body reads globals by LOAD_NAME; its own names there are not among the globals.
            if "GLOBAL" in instruction.opname or instruction.opname == "LOAD_NAME":
                yield instruction.argval


def _attribute_names(code: types.CodeType) -> Iterator[str]:
    for each in _codes(code):
        yield from each.co_names


def _source(code: types.CodeType) -> str:
    import inspect
    import textwrap

    if code.co_name == "<lambda>":
        return ""  # its lines hold more than the lambda
    try:
        text = textwrap.dedent(inspect.getsource(code))
    except (OSError, TypeError, IndexError, SyntaxError):
        return ""
    return text if len(text) <= _MAX_SOURCE_CHARS else ""


def _by_pickle(function: Callable[..., Any], name: str) -> SerializedFunction:
    pickled = [_dump(function, name)]
    module = getattr(function, "__module__", None) or "__main__"
    if pickled[0][3:4] == frames.PICKLE and isinstance(function, (types.FunctionType, type)):
        pickled += _value_behind(function, module)
    return SerializedFunction(name=name, module=module, python=frames.PYTHON, pickled=tuple(pickled))


def _dump(value: object, name: str) -> bytes:
    try:
        return frames.dumps(value, local_by_value=True)
    except frames.NotSerializable as error:
        raise FunctionUnserializable(name=name, reason=str(error)) from error


def _value_behind(function: Callable[..., Any], module_name: str) -> list[bytes]:
    """Return an installed function by value, for workers without its package; empty where that is not possible."""
    module = sys.modules.get(module_name)
    if module is None or module_name.partition(".")[0] in sys.stdlib_module_names | {"mep_sdk", "mep_wire"}:
        return []
    try:
        data = frames.dumps_by_value(function, module)
    except frames.NotSerializable:
        return []  # the reference still stands
    return [data] if len(data) <= _MAX_FALLBACK_BYTES else []


# --- from bytes, in the worker ------------------------------------------------------------------------


def load_function(data: bytes) -> LoadedFunction:
    """Return the function in `data`.

    Raises FunctionUnloadable, with both Pythons where they differ, and whatever the modules that it needs raise when
    they are imported.
    """
    try:
        kind, body = frames.unframe(data, "function")
        if kind != frames.FUNCTION:
            raise DataCorrupt(what="function", reason=f"its kind is {kind!r}")
        record = _decoder.decode(body)
    except (MepError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        reason = error.text if isinstance(error, MepError) else f"its record is damaged: {error}"
        raise FunctionUnloadable(reason=reason) from error
    return _from_code(record) if record.code else _from_pickles(record)


def _from_code(record: SerializedFunction) -> LoadedFunction:
    space: dict[str, Any] = {"__builtins__": builtins, "__name__": record.module, "__doc__": None}
    for name, module in record.imports:
        loaded = importlib.import_module(module)
        if name:
            space[name] = loaded
    if record.python == frames.PYTHON:
        code: types.CodeType = marshal.loads(record.code)  # noqa: S302 - checksummed, and the worker is the person's own
    else:
        code = _compile(record)
    positional, keyword = frames.loads(record.defaults, "defaults") if record.defaults else (None, None)
    function = types.FunctionType(code, space, code.co_name, positional)
    function.__kwdefaults__ = keyword
    function.__qualname__ = record.name
    if record.itself:
        space[code.co_name] = function
    return LoadedFunction(function, record.name, record.source, code.co_filename, code.co_firstlineno)


def _compile(record: SerializedFunction) -> types.CodeType:
    """Return the code of a function that another Python serialized, from its source text."""
    import ast

    both = f"it was serialized by {record.python} and this worker runs {frames.PYTHON}"
    if not record.source:
        raise FunctionUnloadable(reason=f"{record.name}: {both}, and its source text is not known")
    node = ast.parse(record.source).body[0]
    if not isinstance(node, ast.FunctionDef):
        raise FunctionUnloadable(reason=f"{record.name}: {both}, and its source is not a plain def")
    node.decorator_list, node.returns = [], None
    arguments = node.args
    for each in ast.walk(arguments):
        if isinstance(each, ast.arg):
            each.annotation = None
    # Defaults come with the record; here they only have to be there.
    arguments.defaults = [ast.Constant(None, lineno=1, col_offset=0) for _ in arguments.defaults]
    arguments.kw_defaults = [value and ast.Constant(None, lineno=1, col_offset=0) for value in arguments.kw_defaults]
    compiled = compile(ast.Module([node], []), f"<{record.name}>", "exec", dont_inherit=True)
    return next(each for each in compiled.co_consts if isinstance(each, types.CodeType))


def _from_pickles(record: SerializedFunction) -> LoadedFunction:
    failure: MepError = DataCorrupt(what="function", reason="its record is empty")
    for data in record.pickled:
        try:
            return LoadedFunction(frames.loads(data, "function"), record.name)
        except (DataCorrupt, DataUnreadable) as error:
            failure = error
    reason = f"{record.name}: {failure.fields.get('reason')}"
    if record.python != frames.PYTHON and record.python not in reason:
        reason += f" (serialized by {record.python}; this worker runs {frames.PYTHON})"
    raise FunctionUnloadable(reason=reason) from failure

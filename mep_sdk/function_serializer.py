"""Functions to self-describing bytes and back.

Most functions that people send use built-ins, modules, other plain functions of the same script and plain values.
Those travel as marshalled code objects, which a worker of the same Python loads in microseconds, with their source
text for a worker of another Python (and for tracebacks). Everything else is cloudpickled, tagged with the Python
that made it, and behind that once more with source text in place of code, for workers of another Python. Functions of
installed modules travel by reference, with their value behind it for workers that lack the module.

Loading runs no code of the person's besides what pickles and module imports do; the worker is theirs anyway.
"""

from __future__ import annotations

import builtins
import importlib
import marshal
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from mep_sdk import encoding
from mep_sdk.errors import DataCorrupt, DataUnreadable, FunctionUnserializable
from mep_sdk.foreign_code import attempt
from mep_sdk.function_record import FunctionCode, SerializedFunction, read_record
from mep_sdk.importable import NotSerializable, needs_value, other_pythons
from mep_wire.errors import FunctionUnloadable, MepError

_MAX_SOURCE_CHARS = 64 * 1024
_MAX_KNOWN_SOURCES = 16
_CONSTANT = (type(None), bool, int, float, complex, str, bytes)


class FunctionSource(NamedTuple):
    """Lines of a file on the person's machine."""

    filename: str
    first_line: int
    text: str


class LoadedFunction(msgspec.Struct, frozen=True):
    """A function that can be called, with the lines that its tracebacks show."""

    call: Callable[..., Any]
    name: str
    sources: tuple[FunctionSource, ...] = ()
    by_source: bytes = b""
    """The same with source text, where `sources` is empty."""

    def lines(self) -> tuple[FunctionSource, ...]:
        """Return the lines that its tracebacks show. Raises DataUnreadable."""
        if self.sources or not self.by_source:
            return self.sources
        found = _from_source(self.by_source, self.name)
        return found.sources if found is not None else ()


# --- to bytes, in the person's script -----------------------------------------------------------------


def serialize_function(function: Callable[..., Any], strategy: str | None = None) -> bytes:
    """Return the bytes of a function or other callable, in the ways of a strategy (see strategies) or in those that
    suit it. Raises FunctionUnserializable."""
    given, _ = attempt(getattr, function, "__qualname__")  # a __getattr__ may raise anything
    name = given if isinstance(given, str) and given else type(function).__qualname__
    _refuse_what_cannot_run(function, name)
    record = _by_code(function) if type(function) is types.FunctionType else None
    record = record or _by_pickle(function, name)
    return encoding.frame(
        encoding.FUNCTION, msgspec.msgpack.encode(_in_ways_of(strategy, record) if strategy else record)
    )


def _in_ways_of(strategy: str, record: SerializedFunction) -> SerializedFunction:
    from mep_sdk import strategies

    kept = strategies.only(record, strategies.CODE_STRATEGIES[strategy])
    if kept is None:
        given = " or ".join(sorted(strategies.ways_of(record)))
        raise FunctionUnserializable(name=record.name, reason=f"it can travel as {given}, and not by {strategy}")
    return kept


def _refuse_what_cannot_run(function: object, name: str) -> None:
    import inspect

    if not callable(function):
        from mep_sdk.argument_checks import shown  # only an error needs it

        given = attempt(shown, function)[0] or "it"
        way = "pass the function itself, as in submit(f, 1), not submit(f(1))"
        raise FunctionUnserializable(name=name, reason=f"{given} cannot be called: {way}")
    called = (function, getattr(type(function), "__call__"), attempt(getattr, function, "func")[0])  # noqa: B004, B009
    if any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in called):
        reason = "it is an async function, and workers call plain ones; wrap it: def f(): return asyncio.run(g())"
        raise FunctionUnserializable(name=name, reason=reason)
    if inspect.isgeneratorfunction(function):
        raise FunctionUnserializable(name=name, reason="it is a generator; return a list instead")


class _Needs:
    """What a function needs of its module: other functions, modules, values. `plain` says whether that is all
    that can travel as code."""

    def __init__(self, function: types.FunctionType) -> None:
        self.functions = [function]
        self.names: dict[str, int] = {}
        self.imports: dict[tuple[str, str], None] = {}
        self.values: dict[str, Any] = {}
        self._space = function.__globals__
        self.plain = all(self._add_needs_of(each) for each in self.functions)  # grows during the loop

    def _add_needs_of(self, function: types.FunctionType) -> bool:
        if function.__closure__ or function.__dict__ or function.__globals__ is not self._space:
            return False
        attributes = set(_attribute_names(function.__code__))
        for name in sorted(set(_global_names(function.__code__)) & self._space.keys() - {"__name__"}):
            value = self._space[name]
            if isinstance(value, types.FunctionType) and value.__globals__ is self._space:
                self._add_function(name, value)
            elif isinstance(value, types.ModuleType):
                if not _travels_by_name(value):
                    return False
                self.imports |= dict.fromkeys([(name, value.__name__)])
                self.imports |= dict.fromkeys(("", each) for each in _submodules(value, attributes))
            elif getattr(builtins, name, self._space) is not value:
                self.values[name] = value
        return True

    def _add_function(self, name: str, function: types.FunctionType) -> None:
        found = (number for number, each in enumerate(self.functions) if each is function)
        number = next(found, len(self.functions))
        if number == len(self.functions):
            self.functions.append(function)
        self.names[name] = number


def _by_code(function: types.FunctionType) -> SerializedFunction | None:
    """Return the function as its code object, or None where it needs more than can travel with that."""
    if not needs_value(function.__module__ or "", local=True):
        return None
    needs = _Needs(function)
    if not needs.plain or _shares_values(needs):
        return None
    try:
        values = encoding.dumps(needs.values, local_by_value=True, for_this_python=True) if needs.values else b""
    except NotSerializable:
        return None
    if values[3:4] not in (b"", encoding.PICKLE):
        return None
    codes = tuple(_code_of(each) for each in needs.functions)
    carry_code = any(each.defaults[3:4] == encoding.CLOUDPICKLE for each in codes)
    carry_code = carry_code or any(map(_makes_code, needs.functions))
    return SerializedFunction(
        name=function.__qualname__,
        module=function.__module__ or "__main__",
        python=encoding.PYTHON,
        codes=codes,
        pickled=tuple(_with_source(function)) if carry_code else (),
        names=tuple(needs.names.items()),
        imports=tuple(needs.imports),
        values=values,
    )


def _makes_code(function: types.FunctionType) -> bool:
    """Return whether a function has functions or classes within, which its result may hold."""
    _, *within = _codes(function.__code__)
    return any("<" not in each.co_name or each.co_name == "<lambda>" for each in within)


def _shares_values(needs: _Needs) -> bool:
    """Return whether a default may be the same object as another default or a global: these travel in several frames,
    which would make two of it."""
    defaults = [
        value
        for function in needs.functions
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        if not _is_constant(value)
    ]
    globals_ = [value for value in needs.values.values() if not _is_constant(value)]
    return bool(defaults) and len(defaults) + len(globals_) > 1


def _is_constant(value: object) -> bool:
    """Return whether it makes no difference if there are two of a value."""
    return type(value) in _CONSTANT or (type(value) is tuple and all(map(_is_constant, value)))


def _code_of(function: types.FunctionType) -> FunctionCode:
    defaults = (function.__defaults__, function.__kwdefaults__)
    return FunctionCode(
        name=function.__qualname__,
        code=marshal.dumps(function.__code__),
        defaults=_dump(defaults, function.__qualname__, function) if any(defaults) else b"",
        source=_source(function.__code__),
    )


def _travels_by_name(module: types.ModuleType) -> bool:
    return sys.modules.get(module.__name__) is module and not needs_value(module.__name__, local=True)


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
        return _lambda_source(code)
    try:
        text = textwrap.dedent(inspect.getsource(code))
    except (OSError, TypeError, IndexError, SyntaxError):
        return ""
    return text if len(text) <= _MAX_SOURCE_CHARS else ""


def _lambda_source(code: types.CodeType) -> str:
    from mep_sdk import code_source  # workers need none

    return attempt(code_source.lambda_text, code)[0] or ""


def _by_pickle(function: Callable[..., Any], name: str) -> SerializedFunction:
    pickled = [_dump(function, name)]
    module = attempt(getattr, function, "__module__")[0] or "__main__"
    if pickled[0][3:4] == encoding.CLOUDPICKLE:
        pickled += _with_source_once(function, pickled[0])
    elif isinstance(function, (types.FunctionType, type)):
        pickled += _value_behind(function, module)
    return SerializedFunction(name=name, module=module, python=encoding.PYTHON, pickled=tuple(pickled))


def _dump(value: object, name: str, part_of: object = None) -> bytes:
    try:
        return encoding.dumps(value, local_by_value=True, for_this_python=True)
    except NotSerializable as error:
        way = encoding.way_to_fault(value if part_of is None else part_of, name, local_by_value=True)
        raise FunctionUnserializable(name=name, reason=f"{error}{way}") from error


_known_sources: dict[bytes, list[bytes]] = {}
"""The last functions' frames with source text, by the digests of those with code: some are serialized at each call."""


def _with_source_once(function: Callable[..., Any], data: bytes) -> list[bytes]:
    """Return a function with its source text, for workers of another Python; empty where that cannot be found."""
    import hashlib  # workers need none

    digest = hashlib.blake2b(data, digest_size=16).digest()
    known = _known_sources.get(digest)
    if known is None:
        known = _with_source(function)
        if len(_known_sources) >= _MAX_KNOWN_SOURCES:
            _known_sources.clear()
        _known_sources[digest] = known
    return known


def _with_source(function: Callable[..., Any]) -> list[bytes]:
    try:
        return [encoding.dumps_by_source(function, encoding.MAX_FALLBACK_BYTES)]
    except (NotSerializable, encoding.OverLimit):
        return []  # workers of this Python still run it


def _value_behind(function: Callable[..., Any], module_name: str) -> list[bytes]:
    """Return an installed function by value, for workers without its package; empty where that is not possible."""
    module = sys.modules.get(module_name)
    if module is None or module_name.partition(".")[0] in sys.stdlib_module_names | {"mep_sdk", "mep_wire"}:
        return []
    try:
        data = encoding.dumps_by_value(function, module)
    except NotSerializable:
        return []  # the reference still stands
    return [data] if len(data) <= encoding.MAX_FALLBACK_BYTES else []


# --- from bytes, in the worker ------------------------------------------------------------------------


def load_function(data: bytes) -> LoadedFunction:
    """Return the function in `data`.

    Raises FunctionUnloadable, with both Pythons where they differ, and whatever the modules that it needs raise when
    they are imported.
    """
    record = read_record(data)
    if record.python != encoding.PYTHON:
        other_pythons.add(record.python)  # results are for the same Python
    if record.codes and (record.python == encoding.PYTHON or not record.pickled):
        return _from_codes(record)
    return _from_pickles(record)


def _from_codes(record: SerializedFunction) -> LoadedFunction:
    space: dict[str, Any] = {"__builtins__": builtins, "__name__": record.module, "__doc__": None}
    for name, module in record.imports:
        loaded = importlib.import_module(module)
        if name:
            space[name] = loaded
    if record.values:
        space |= encoding.loads(record.values, "function's globals")
    functions = [_function(each, record.python, space) for each in record.codes]
    space |= {name: functions[number] for name, number in record.names}
    sources = tuple(
        FunctionSource(function.__code__.co_filename, function.__code__.co_firstlineno, each.source)
        for function, each in zip(functions, record.codes, strict=True)
        if each.source
    )
    return LoadedFunction(functions[0], record.name, sources)


def _function(record: FunctionCode, python: str, space: dict[str, Any]) -> types.FunctionType:
    if python == encoding.PYTHON:
        code: types.CodeType = marshal.loads(record.code)  # noqa: S302 - checksummed, and the worker is the person's own
    else:
        code = _compile(record, python)
    positional, keyword = encoding.loads(record.defaults, "defaults") if record.defaults else (None, None)
    function = types.FunctionType(code, space, code.co_name, positional)
    function.__kwdefaults__ = keyword
    function.__qualname__ = record.name
    return function


def _compile(record: FunctionCode, python: str) -> types.CodeType:
    """Return the code of a function that another Python serialized, from its source text."""
    import ast

    both = f"{record.name}: it was serialized by {python} and this worker runs {encoding.PYTHON}"
    if not record.source:
        raise FunctionUnloadable(reason=f"{both}, and its source text is not known")
    try:
        made = ast.parse(record.source).body[0]
    except SyntaxError as error:
        raise FunctionUnloadable(reason=f"{both}, which cannot read its source: {error}") from error
    node: Any = made.value if isinstance(made, ast.Expr) else made
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        node.decorator_list, node.returns = [], None
    elif not isinstance(node, ast.Lambda):
        raise FunctionUnloadable(reason=f"{both}, and its source is no plain function")
    for each in ast.walk(node.args):
        if isinstance(each, ast.arg):
            each.annotation = None
    # Defaults come with the record; here they only have to be there.
    nothing = ast.Constant(None, lineno=1, col_offset=0)
    node.args.defaults = [nothing for _ in node.args.defaults]
    node.args.kw_defaults = [value and nothing for value in node.args.kw_defaults]
    compiled = compile(ast.Module([made], []), f"<{record.name}>", "exec", dont_inherit=True)
    return next(each for each in compiled.co_consts if isinstance(each, types.CodeType))


def _from_source(data: bytes, name: str) -> LoadedFunction | None:
    """Return a function that travels with source text for its code; None for any other."""
    if not encoding.is_by_source(data):
        return None
    from mep_sdk import code_source  # most workers never need it

    with code_source.collected() as pieces:
        call = encoding.loads(data, "function")
    return LoadedFunction(call, name, tuple(FunctionSource(*where, text) for where, text in pieces.items()))


def _from_pickles(record: SerializedFunction) -> LoadedFunction:
    failure: MepError = DataCorrupt(what="function", reason="its record is empty")
    for data in record.pickled:
        try:
            if found := _from_source(data, record.name):
                return found
            call, behind = encoding.loads(data, "function"), next(filter(encoding.is_by_source, record.pickled), b"")
            return LoadedFunction(call, record.name, by_source=behind)
        except (DataCorrupt, DataUnreadable) as error:
            failure = error
            if error.__cause__ is not None and not isinstance(error.__cause__, Exception):
                break  # its module exits when it is imported: the person means that
    reason = f"{record.name}: {failure.fields.get('reason')}"
    if record.python != encoding.PYTHON and record.python not in reason:
        reason += f" (serialized by {record.python}; this worker runs {encoding.PYTHON})"
    raise FunctionUnloadable(reason=reason) from failure

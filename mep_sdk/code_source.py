"""Code objects by their source text, so that another Python version can compile them.

The text is the function's own, below empty functions and classes with the names of those that it is in. These bind the
names of its closure, so that closures, `super()` and private names keep their meaning. Nothing else of the script goes
along: the code around a function may hold a token. In the script each text is compiled at once: only one that gives the
same code object is used. That tells lambdas of one line apart, and finds a file that was changed since. Called by
source_pickler and function_serializer.
"""

from __future__ import annotations
import __future__

import ast
import contextlib
import contextvars
import functools
import inspect
import itertools
import linecache
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

_FUTURES = functools.reduce(
    int.__or__, (getattr(__future__, each).compiler_flag for each in __future__.all_feature_names)
)
_MAX_FILE_CHARS = 512 * 1024
MAX_TEXT_CHARS = 64 * 1024
_MAX_CANDIDATES = 50
_MAX_LOADED = 1024
_Functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_SCOPES = (*_Functions, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class SourceUnknown(Exception):
    """Code cannot be made from source text; the text says why."""


class CodeSource(NamedTuple):
    """Where a code object is in a piece of source text."""

    text: str
    line: int
    """Of the text's first line in its file; that of the function is `above` lines further."""
    above: int
    number: int
    """Which of the functions in the text it is, in the order of ast.walk."""
    name: str
    file: str
    flags: int
    """Of the `from __future__` imports."""
    free: tuple[str, ...]
    """The names of its closure."""


class _Place(NamedTuple):
    """A function in a file."""

    span: tuple[int, int, int, int]
    """Its first line and column, and its last, in bytes."""
    around: tuple[tuple[str, str], ...]
    """The scopes that it is in, the outermost first, as (class or def, name)."""


# --- in the person's script ---------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def _found(file: str, code: types.CodeType) -> CodeSource | None:
    linecache.checkcache(file)
    text = "".join(linecache.getlines(file))
    if not text or len(text) > _MAX_FILE_CHARS:
        return None
    flags, name = code.co_flags & _FUTURES, code.co_name
    places, imported = _by_line(text)
    for place in places.get((code.co_firstlineno, name), [])[:_MAX_CANDIDATES]:
        piece, above, number = _piece(text, place, code)
        source = CodeSource(piece, place.span[0] - above, above, number, name, file, flags, code.co_freevars)
        if len(piece) <= MAX_TEXT_CHARS and _makes(source, code, imported):
            return source
    return None


def _makes(source: CodeSource, code: types.CodeType, imported: tuple[str, ...]) -> bool:
    """Return whether the text gives this code object. `imported`: names of modules, calls of which are compiled in
    another way."""
    try:
        return _key(_compiled(source, imported)) == _key(code)
    except SourceUnknown:
        return False


def source_of(code: types.CodeType) -> CodeSource:
    """Return the source text of a function's code object. Raises SourceUnknown."""
    found = _loaded.get((code.co_filename, code)) or _found(code.co_filename, code)
    if found is None:
        raise SourceUnknown(f"the source text of {code.co_name} in {code.co_filename} cannot be found")
    return found


def lambda_text(code: types.CodeType) -> str:
    """Return a lambda's own text, in parentheses. Raises SourceUnknown."""
    return _lambda_text(code.co_filename, code)


@functools.lru_cache(maxsize=256)
def _lambda_text(_file: str, code: types.CodeType) -> str:
    source = source_of(code)
    tree = _parse(source.text)
    node = next(itertools.islice(_functions(tree), source.number, None))
    text = f"({ast.get_source_segment(source.text, node)})"
    alone = next(_inner(_module(text, 1, source.file, source.flags, _imported_in(source.file)), ()))[1]
    if _key(alone, alone=True) != _key(code, alone=True):
        raise SourceUnknown(f"{code.co_name} depends on what is around it")
    return text


def _imported_in(file: str) -> tuple[str, ...]:
    return _by_line("".join(linecache.getlines(file)))[1]


@functools.lru_cache(maxsize=4)
def _by_line(text: str) -> tuple[dict[tuple[int, str], list[_Place]], tuple[str, ...]]:
    """Return the functions in a file by line and name, and the names that the file imports."""
    places: dict[tuple[int, str], list[_Place]] = {}
    imported: dict[str, None] = {}
    try:
        left: list[tuple[ast.AST, tuple[tuple[str, str], ...]]] = [(_parse(text), ())]
    except SourceUnknown:
        return places, ()
    while left:
        node, around = left.pop()
        if isinstance(node, _Functions):
            places.setdefault((_head(node).lineno, getattr(node, "name", "<lambda>")), []).append(
                _Place(_span(node), around)
            )
        elif isinstance(node, ast.Import | ast.ImportFrom) and not around:
            names = (each.asname or each.name.partition(".")[0] for each in node.names)
            imported |= dict.fromkeys(each for each in names if each != "*")
        if isinstance(node, _SCOPES):
            word = "class" if isinstance(node, ast.ClassDef) else "def"
            around = (*around, (word, getattr(node, "name", "_")))
        left += [(child, around) for child in ast.iter_child_nodes(node)]
    return places, tuple(imported)


def _span(node: Any) -> tuple[int, int, int, int]:
    return _head(node).lineno, node.col_offset, node.end_lineno, node.end_col_offset


def _piece(text: str, place: _Place, code: types.CodeType) -> tuple[str, int, int]:
    """Return a function's text in its own columns below its scopes, the number of lines above it, and that of the
    functions above it."""
    first, column, last, end = place.span
    lines = [each.encode() for each in text.split("\n")[first - 1 : last]]
    lines[-1] = lines[-1][:end]
    around = place.around
    if code.co_name == "<lambda>":
        indent, lines[0] = " " * (len(around) + 2), b" " * column + lines[0][column:]
    else:
        indent = lines[0][:column].decode()
        if not (indent or around):
            return b"\n".join(lines).decode(), 0, 0
    in_class = bool(around) and around[-1][0] == "class"
    free = [each for each in code.co_freevars if each != "__class__" or not in_class]
    if free and all(word == "class" for word, _ in around):
        around = (("def", "_"), *around)
    above = _above(around, free, indent) if around else ["if 1:"]
    own = b"\n".join(lines).decode()
    if code.co_name == "<lambda>":
        above.append(f"{indent}(")
        own += ")"
    return "\n".join([*above, own]), len(above), sum(word == "def" for word, _ in around)


def _above(around: tuple[tuple[str, str], ...], free: list[str], indent: str) -> list[str]:
    """Return the lines of empty scopes, the outermost function of which binds the names in `free`."""
    lines = []
    for depth, (word, name) in enumerate(around):
        lines.append(f"{indent[:depth]}{word} {name}{'()' if word == 'def' else ''}:")
        if word == "def" and free:
            inner = indent[: depth + 1] if depth + 1 < len(around) else indent
            lines.append(f"{inner}{' = '.join(free)} = None")
            free = []
    return lines


def _key(code: types.CodeType, *, alone: bool = False) -> tuple[Any, ...]:
    """Return all that makes a code object do what it does; where it is not, if it is `alone`."""
    names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & ~inspect.CO_NESTED)
    constants = tuple(_constant(each, alone=alone) for each in code.co_consts)
    where = () if alone else tuple(code.co_positions()) if sys.version_info >= (3, 11) else code.co_firstlineno
    return names, counts, code.co_code, constants, where


def _constant(value: object, *, alone: bool) -> Any:
    if isinstance(value, types.CodeType):
        return _key(value, alone=alone)
    if isinstance(value, tuple | frozenset):
        items = (_constant(each, alone=alone) for each in value)
        return type(value), tuple(items) if isinstance(value, tuple) else frozenset(items)
    return type(value), repr(value)


# --- on both sides ------------------------------------------------------------------------------------


def _compiled(source: CodeSource, imported: tuple[str, ...] = ()) -> types.CodeType:
    """Return the code object that a CodeSource describes. Raises SourceUnknown."""
    path = _paths(source.text, source.line, source.flags, imported).get(source.number)
    if path is None:
        raise SourceUnknown(f"{source.name} is not in its source text")
    code = _at(_module(source.text, source.line, source.file, source.flags, imported), path)
    if code.co_name != source.name or code.co_freevars != source.free:
        raise SourceUnknown(f"the source text of {source.name} has another meaning in this Python")
    return code


def _at(code: types.CodeType, path: tuple[int, ...]) -> types.CodeType:
    for index in path:
        code = code.co_consts[index]
    return code


def load(*parts: Any) -> types.CodeType:
    """Return the code object, as pickles of functions call it, and keep its source text."""
    source = CodeSource(*parts)
    code = _compiled(source)
    if (source.file, code) not in _loaded:
        _keep(source)
    if (pieces := _collecting.get()) is not None:
        own = source.text.split("\n", source.above)[-1]
        pieces[source.file, source.line + source.above] = own + "\n"
    return code


def _keep(source: CodeSource) -> None:
    """Remember the text of all functions of a statement: the ones that it makes may go back."""
    if len(_loaded) >= _MAX_LOADED:
        _loaded.clear()
    module = _module(source.text, source.line, source.file, source.flags)
    for number, path in _paths(source.text, source.line, source.flags).items():
        code = _at(module, path)
        own = source._replace(number=number, name=code.co_name, free=code.co_freevars)
        _loaded[source.file, code] = own


_loaded: dict[tuple[str, types.CodeType], CodeSource] = {}
"""Code that was compiled from source text here, and may go back."""
Pieces = dict[tuple[str, int], str]
"""Text of functions by file and first line."""
_collecting: contextvars.ContextVar[Pieces | None] = contextvars.ContextVar("_collecting", default=None)


@contextlib.contextmanager
def collected() -> Iterator[Pieces]:
    """Yield a dict into which goes the text from which functions are made in this context."""
    pieces: Pieces = {}
    token = _collecting.set(pieces)
    try:
        yield pieces
    finally:
        _collecting.reset(token)


def _parse(text: str) -> ast.Module:
    tree: ast.Module = _compile(text, "<source>", ast.PyCF_ONLY_AST)
    return tree


def _compile(what: Any, file: str, flags: int) -> Any:
    flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # said when the script itself was compiled
            return compile(what, file, "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SourceUnknown(f"this Python cannot read the source text: {error}") from error


def _statement(text: str, line: int, imported: tuple[str, ...] = ()) -> ast.Module:
    tree = _parse(text)
    node: Any
    for node in ast.walk(tree):
        if hasattr(node, "lineno"):
            node.lineno = max(1, node.lineno + line - 1)  # of the scopes above, it may be before the file's first
            node.end_lineno = max(node.lineno, node.end_lineno + line - 1)
    if imported:
        tree.body.insert(0, ast.Import([ast.alias(each) for each in imported]))
        ast.fix_missing_locations(tree)
    return tree


@functools.lru_cache(maxsize=64)
def _module(text: str, line: int, file: str, flags: int, imported: tuple[str, ...] = ()) -> types.CodeType:
    code: types.CodeType = _compile(_statement(text, line, imported), file, flags)
    return code


@functools.lru_cache(maxsize=64)
def _paths(text: str, line: int, flags: int, imported: tuple[str, ...] = ()) -> dict[int, tuple[int, ...]]:
    """Return where the functions of a statement are in its code object: indexes into constants, one in the other.

    To find them, each function is given a line of its own.
    """
    tree = _statement(text, line, imported)
    marked = max(1, line + text.count("\n")) + 1
    for number, node in enumerate(_functions(tree)):
        head = _head(node)
        head.lineno = head.end_lineno = marked + number
        head.end_col_offset = max(head.col_offset, head.end_col_offset)
    found: dict[int, tuple[int, ...]] = {}
    for path, code in _inner(_compile(tree, "<source>", flags), ()):
        if code.co_firstlineno >= marked:
            found.setdefault(code.co_firstlineno - marked, path)
    return found


def _inner(code: types.CodeType, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], types.CodeType]]:
    for index, constant in enumerate(code.co_consts):
        if isinstance(constant, types.CodeType):
            yield (*path, index), constant
            yield from _inner(constant, (*path, index))


def _functions(tree: ast.AST) -> Iterator[Any]:
    return (node for node in ast.walk(tree) if isinstance(node, _Functions))


def _head(node: Any) -> Any:
    """Return the part of a function that begins it: its code names that line."""
    decorators = getattr(node, "decorator_list", None)
    return decorators[0] if decorators else node

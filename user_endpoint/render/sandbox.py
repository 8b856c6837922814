"""The sandbox in which templates are rendered, and the code generator that keeps text and values apart.

Jinja's own seam for native types is used: a code generator class and `concat` (see jinja2.nativetypes).
Templates are the administrator's and trusted to be well meant; the variables are a person's and are not.
"""

from __future__ import annotations

import functools
import itertools
import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import FunctionLoader, StrictUndefined, TemplateRuntimeError, UndefinedError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import TemplateModule
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

from user_endpoint.render.pieces import Fragment, Json, Text, Value, pieces_of, plain

MAX_OUTPUT_CHARS = 1024 * 1024
"""Longest rendered text."""


class OutputTooLong(TemplateRuntimeError):
    """The rendered configuration is longer than is allowed."""


class MissingVariable(UndefinedError):
    """A variable, or an element of one, that is not there was used. `name` is the variable's own name or None."""

    def __init__(self, name: str | None, owner: object, message: str | None = None) -> None:
        self.name, self.owner = name, owner
        super().__init__(message)


class NamingUndefined(StrictUndefined):
    """Undefined that fails with the variable's name, which the person or the administrator needs."""

    __slots__ = ()

    def __init__(
        self,
        hint: str | None = None,
        obj: Any = missing,
        name: str | None = None,
        exc: type[TemplateRuntimeError] = UndefinedError,
    ) -> None:
        if exc is UndefinedError:
            variable = name if obj is missing and hint is None else None
            exc = functools.partial(MissingVariable, variable, obj)  # type: ignore[assignment] # raised by calling it
        super().__init__(hint, obj, name, exc)


class PieceCodeGenerator(CodeGenerator):
    """Emits template text as Text and the value of each expression as it is."""

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.text({''.join(group)!r})"

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> Any:
        """Fold template text, and text literals, which are the template's own text as well."""
        if isinstance(node, nodes.TemplateData):
            return node.data
        if _is_literal_text(node) and isinstance(node, nodes.Const):
            return node.value
        raise nodes.Impossible

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if _is_literal_text(node):
            self.write("environment.text(")
            return
        names = sorted({name.name for name in _names_in(node) if name.ctx == "load"})
        self.write(f"environment.value({tuple(names)!r}, ")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")


def _is_literal_text(node: nodes.Expr) -> bool:
    """Tell whether an expression is a text literal, or chooses between several by a condition."""
    if isinstance(node, nodes.CondExpr):
        return node.expr2 is not None and _is_literal_text(node.expr1) and _is_literal_text(node.expr2)
    return isinstance(node, nodes.Const) and isinstance(node.value, str)


def _says_all_itself(node: nodes.Filter) -> bool:
    """Tell whether every argument of a filter is a constant, so that no value affects the filter's behaviour."""
    arguments = [*node.args, *(keyword.value for keyword in node.kwargs)]
    return not node.dyn_args and not node.dyn_kwargs and all(isinstance(part, nodes.Const) for part in arguments)


def _keeping(name: str) -> str:
    """Return the name of a filter's variant that keeps pieces: none that a template could write."""
    return f"{name} keeping pieces"


def _names_in(node: nodes.Expr) -> list[nodes.Name]:
    return [node] if isinstance(node, nodes.Name) else list(node.find_all(nodes.Name))


class PieceEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which templates render to a Fragment."""

    code_generator_class = PieceCodeGenerator

    def __init__(self, templates: Mapping[str, str]) -> None:
        super().__init__(undefined=NamingUndefined, loader=FunctionLoader(functools.partial(_source, templates)))
        self.filters["shell_escape"] = shell_escape
        self.filters["tojson"] = to_json
        for name, keeping in _LAYOUT_FILTERS.items():
            self.filters[_keeping(name)] = functools.partial(keeping, self.filters[name])
        self.filters["safe"] = _as_it_is  # there is no HTML here, and marking would turn template text into a value
        del self.globals["lipsum"]

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        """Use the variants of `indent` and `trim` that keep pieces, wherever the template alone says how."""
        for node in source.find_all(nodes.Filter):
            if node.name in _LAYOUT_FILTERS and _says_all_itself(node):
                node.name = _keeping(node.name)
        return super()._generate(source, name, filename, defer_init)

    text = Text

    @staticmethod
    def value(names: tuple[str, ...], data: Any) -> Text | Value | Fragment:
        """Return the result of an expression that reads `names`, as a piece."""
        if isinstance(data, Fragment | Value):
            return data
        if isinstance(data, TemplateModule):
            return _joined(vars(data)["_body_stream"])
        return Value(data if isinstance(data, Json) else plain(data), names)

    @staticmethod
    def concat(items: Iterable[Any]) -> Fragment:
        """Join the output of a template, block or macro. Anything that isn't a piece becomes a value."""
        return _joined(items)


def _joined(items: Iterable[Any]) -> Fragment:
    pieces: list[Text | Value] = []
    length = 0
    for item in items:
        piece = item if isinstance(item, Text) else PieceEnvironment.value((), item)
        added = pieces_of(piece) if isinstance(piece, Fragment) else (piece,)
        length += sum(len(part) if isinstance(part, Text) else len(part.text) for part in added)
        if length > MAX_OUTPUT_CHARS:
            raise OutputTooLong(f"the rendered text is longer than {MAX_OUTPUT_CHARS} characters")
        pieces.extend(added)
    return Fragment(tuple(pieces))


def _source(templates: Mapping[str, str], name: str) -> tuple[str, str, None] | None:
    """Return source and file name of a template; tracebacks are searched for the file name."""
    source = templates.get(name)
    return None if source is None else (source, name, None)


def shell_escape(value: Any) -> str:
    """Filter: quote a value for a POSIX shell; a list becomes as many quoted words."""
    if isinstance(value, Undefined):
        str(value)  # raises MissingVariable
    words = value if isinstance(value, list | tuple) else [value]
    return " ".join(shlex.quote(str(word)) for word in words)


def to_json(value: Any, indent: int | None = None) -> Json:
    """Filter: the value as JSON where it stands inside a text, the value itself where it stands alone."""
    data = plain(value)
    return Json(json.dumps(data, indent=indent, sort_keys=True, ensure_ascii=False), data)


def _as_it_is(value: Any) -> Any:
    return value


def _indent(
    usual: Callable[..., str], text: Any, width: int | str = 4, first: bool = False, blank: bool = False
) -> Any:
    """Indent the lines of template text; a value's contents are left alone and count as not blank."""
    if not isinstance(text, Fragment):
        return usual(text, width, first, blank)
    margin = width if isinstance(width, str) else " " * width
    pieces: list[Text | Value] = [Text(margin)] if first else []
    for piece, after in itertools.zip_longest(pieces_of(text), pieces_of(text)[1:]):
        if isinstance(piece, Value):
            pieces.append(piece)
            continue
        lines = str(piece).split("\n")
        last = len(lines) - 1
        for index, line in enumerate(lines[1:], 1):
            begins_value = index == last and isinstance(after, Value)
            lines[index] = margin + line if line or blank or begins_value else line
        pieces.append(Text("\n".join(lines)))
    return Fragment(tuple(pieces))


def _trim(usual: Callable[..., str], text: Any, chars: str | None = None) -> Any:
    """Strip template text at both ends; a value at an end is left alone."""
    if not isinstance(text, Fragment):
        return usual(text, chars)
    pieces = list(pieces_of(text))
    while pieces and isinstance(pieces[0], Text) and not pieces[0].strip(chars):
        del pieces[0]
    while pieces and isinstance(pieces[-1], Text) and not pieces[-1].strip(chars):
        del pieces[-1]
    if pieces and isinstance(pieces[0], Text):
        pieces[0] = Text(pieces[0].lstrip(chars))
    if pieces and isinstance(pieces[-1], Text):
        pieces[-1] = Text(pieces[-1].rstrip(chars))
    return Fragment(tuple(pieces))


_LAYOUT_FILTERS: dict[str, Callable[..., Any]] = {"indent": _indent, "trim": _trim}
"""Filters that lay out template text; of pieces they make pieces."""

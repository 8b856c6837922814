"""Which line of which template each line of the rendered text comes from. For `mep render` alone.

A code generator of its own notes the template's name and line with each piece of template text. A start does not pay
for it. What `indent` and `trim` lay out anew loses its line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from jinja2 import nodes
from jinja2.compiler import Frame

from user_endpoint.render.pieces import Fragment, Text, Value, pieces_of
from user_endpoint.render.sandbox import PieceCodeGenerator, PieceEnvironment

Origin = tuple[str, int]
"""The name of a template, and a line in it, from 1."""


class OriginText(Text):
    """Template text that knows where it stands."""

    origin: Origin

    def __new__(cls, text: str, origin: Origin) -> Self:
        """`origin` is the place of the first character."""
        self = super().__new__(cls, text)
        self.origin = origin
        return self


class _Constant(str):
    """Text that the compiler folds, with its line in the template."""

    line: int


class OriginCodeGenerator(PieceCodeGenerator):
    """Emits template text with its place."""

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        parts = tuple((str(part), part.line) for part in group)
        return f"environment.origin_text({self.name!r}, {parts!r})"

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> Any:
        constant = _Constant(super()._output_child_to_const(node, frame, finalize))
        constant.line = node.lineno
        return constant


class OriginEnvironment(PieceEnvironment):
    """The sandbox of a start. Its output also knows its lines."""

    code_generator_class = OriginCodeGenerator

    @staticmethod
    def origin_text(name: str, parts: tuple[tuple[str, int], ...]) -> Fragment:
        """Return consecutive constants of template `name` as pieces."""
        return Fragment(tuple(OriginText(text, (name, line)) for text, line in parts))


def line_origins(fragment: Fragment) -> list[Origin | None]:
    """Return the origin of each line of the rendered text, each value counted as one line.

    A line belongs to the template of its first visible text; else to the one in which its expression stands.
    """
    lines = [_LineOrigin()]
    here: Origin | None = None
    for piece in pieces_of(fragment):
        if isinstance(piece, Value):
            lines[-1].take(here, visible=False)
            continue
        for number, part in enumerate(piece.split("\n")):
            if number:
                lines.append(_LineOrigin())
            here = (piece.origin[0], piece.origin[1] + number) if isinstance(piece, OriginText) else None
            lines[-1].take(here, visible=bool(part.strip()))
    return [line.origin for line in lines]


class _LineOrigin:
    def __init__(self) -> None:
        self.origin: Origin | None = None
        self._visible = False

    def take(self, origin: Origin | None, *, visible: bool) -> None:
        """Note where a part of the line stands; the first visible part decides."""
        if origin is not None and not self._visible and (visible or self.origin is None):
            self.origin, self._visible = origin, visible

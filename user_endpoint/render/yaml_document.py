"""From rendered pieces to a document, so that no value ever meets the YAML parser.

Template text is joined with an unguessable placeholder for each value, and YAML composes the result to nodes. A
plain scalar that is exactly one placeholder then becomes the typed value. A placeholder inside a longer,
quoted or block scalar becomes the value's text. Keys, tags, anchors and aliases may not hold placeholders.

Two features of YAML 1.1 are left out: an unquoted 10:30:00 is text here, not the number 37800, and an
unquoted date is text, not a date.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from user_endpoint.render.pieces import Fragment, Text, Value, pieces_of

MAX_NODES = 50_000
"""Most scalars, lists and mappings in one document, aliases counted as often as they are used."""

_TAG = "tag:yaml.org,2002:"
_NUMBERS = frozenset({f"{_TAG}int", f"{_TAG}float"})
_SCALARS = frozenset({f"{_TAG}null", f"{_TAG}bool"}) | _NUMBERS
_TEXTS = frozenset({f"{_TAG}str", f"{_TAG}timestamp", f"{_TAG}value"})

Path = tuple[str, ...]


class YamlInvalid(Exception):
    """The rendered template is not YAML that can be used. Values are blanked in reason and excerpt."""

    def __init__(self, reason: str, line: int, excerpt: str) -> None:
        self.reason, self.line, self.excerpt = reason, line, excerpt
        super().__init__(f"line {line} of the rendered text: {reason}: {excerpt}")


class _NodeRefused(yaml.MarkedYAMLError):
    """A node that is YAML but is not allowed in a configuration."""

    def __init__(self, problem: str, mark: yaml.Mark) -> None:
        super().__init__(problem=problem, problem_mark=mark)


@dataclass(frozen=True, slots=True)
class ScalarSpan:
    """Where a scalar with values stands in the text that the parser saw, and what it became."""

    start: int
    end: int
    block: bool
    """Whether it is a block scalar (`|` or `>`)."""
    data: Any


@dataclass(frozen=True, slots=True)
class MarkedText:
    """A rendered template with a placeholder for each value: what the parser sees."""

    text: str
    values: list[Value]
    placeholder: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """A rendered template as plain data."""

    data: Any
    sources: dict[Path, tuple[str, ...]] = field(default_factory=dict)
    """For each path at which a value stands: the variables that the expressions there read."""
    lines: dict[str, int] = field(default_factory=dict)
    """For the path of each key, as in engine.provider.walltime: its line in the rendered text, from 1."""
    spans: dict[int, ScalarSpan] = field(default_factory=dict)
    """The scalars that hold values, by their start."""


def marked(fragment: Fragment) -> MarkedText:
    """Return the text of `fragment` with an unguessable placeholder for each value."""
    token = secrets.token_hex(16)
    parts: list[str] = []
    values: list[Value] = []
    for piece in pieces_of(fragment):
        parts.append(piece if isinstance(piece, Text) else f"v{token}n{len(values)}z")
        if isinstance(piece, Value):
            values.append(piece)
    return MarkedText("".join(parts), values, re.compile(f"v{token}n([0-9]+)z"))


def document_from(fragment: Fragment) -> YamlDocument:
    """Return the document that a rendered template holds. Raises YamlInvalid."""
    return document_of(marked(fragment))


def document_of(source: MarkedText) -> YamlDocument:
    """Return the document of a marked text. Raises YamlInvalid."""
    text, placeholder = source.text, source.placeholder
    try:
        root = _Loader(text, placeholder).get_single_node()
        builder = _Builder(source.values, placeholder)
        data = None if root is None else builder.build(root, ())
        return YamlDocument(data, builder.sources, builder.lines, builder.spans)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ": ".join(part for part in (error.context, error.problem) if part)
        raise _invalid(text, placeholder, reason, mark) from error
    except yaml.reader.ReaderError as error:
        raise _invalid(text, placeholder, f"{error.reason} (character {error.character!r})", None) from error
    except RecursionError as error:
        raise _invalid(text, placeholder, "it is nested too deeply", None) from error


def _invalid(text: str, placeholder: re.Pattern[str], reason: str, mark: yaml.Mark | None) -> YamlInvalid:
    line = mark.line if mark else 0
    lines = text.splitlines()
    excerpt = lines[line] if mark and line < len(lines) else ""
    return YamlInvalid(placeholder.sub("***", reason), line + 1, placeholder.sub("***", excerpt.strip()))


class _Loader(yaml.SafeLoader):
    """Composes nodes, refusing placeholders where they would decide something about the structure."""

    def __init__(self, text: str, placeholder: re.Pattern[str]) -> None:
        super().__init__(text)
        self._placeholder = placeholder

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call] # the stubs leave it so
        for attribute in ("anchor", "tag"):
            if self._placeholder.search(getattr(event, attribute, None) or ""):
                raise _NodeRefused(f"a value may not stand in a YAML {attribute} or alias", event.start_mark)
        tagged = bool(getattr(event, "tag", None))
        node: Node | None = super().compose_node(parent, index)
        if tagged and isinstance(node, ScalarNode) and self._placeholder.search(node.value):
            raise _NodeRefused("a value may not carry a YAML tag", event.start_mark)
        return node


class _Builder:
    """Nodes to plain data, with the values put in."""

    def __init__(self, values: Sequence[Value], placeholder: re.Pattern[str]) -> None:
        self.sources: dict[Path, tuple[str, ...]] = {}
        self.lines: dict[str, int] = {}
        self.spans: dict[int, ScalarSpan] = {}
        self._values, self._placeholder = values, placeholder
        self._constructor = yaml.constructor.SafeConstructor()
        self._open: set[Node] = set()
        self._built = 0

    def build(self, node: Node, path: Path) -> Any:
        """Return the data of `node`, which stands at `path`. Raises _NodeRefused."""
        self._built += 1
        if self._built > MAX_NODES:
            raise _NodeRefused(f"the document has more than {MAX_NODES} parts", node.start_mark)
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if node in self._open:
            raise _NodeRefused("an alias leads back to itself", node.start_mark)
        self._open.add(node)
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, path)
            return self._sequence(node, path)
        finally:
            self._open.discard(node)

    def _sequence(self, node: Node, path: Path) -> list[Any]:
        if not isinstance(node, SequenceNode) or node.tag != f"{_TAG}seq":
            raise _NodeRefused(f"the tag {node.tag} is not accepted", node.start_mark)
        return [self.build(item, (*path, str(index))) for index, item in enumerate(node.value)]

    def _mapping(self, node: MappingNode, path: Path) -> dict[Any, Any]:
        if node.tag != f"{_TAG}map":
            raise _NodeRefused(f"the tag {node.tag} is not accepted", node.start_mark)
        merged: dict[Any, Any] = {}
        own: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key_node.tag == f"{_TAG}merge":
                merged = {**self._merged(value_node, path), **merged}
            elif key in own:
                raise _NodeRefused(f"the key {key!r} stands there twice", key_node.start_mark)
            else:
                self.lines[".".join((*path, str(key)))] = key_node.start_mark.line + 1
                own[key] = self.build(value_node, (*path, str(key)))
        return {**merged, **own}

    def _merged(self, node: Node, path: Path) -> dict[Any, Any]:
        """Return the mapping that a `<<` key brings in; of several, the first one that has a key decides."""
        parts = node.value if isinstance(node, SequenceNode) else [node]
        result: dict[Any, Any] = {}
        for part in parts:
            if not isinstance(part, MappingNode):
                raise _NodeRefused("only a mapping can be merged with <<", node.start_mark)
            result = {**self.build(part, path), **result}
        return result

    def _key(self, node: Node) -> Any:
        if not isinstance(node, ScalarNode):
            raise _NodeRefused("a key must be a single word or text", node.start_mark)
        if self._placeholder.search(node.value):
            raise _NodeRefused("a value may not stand in a key", node.start_mark)
        return node.value if node.tag == f"{_TAG}merge" else self._scalar(node, ())

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        found = [self._values[int(index)] for index in self._placeholder.findall(node.value)]
        if found:
            self.sources[path] = tuple(sorted({name for value in found for name in value.names}))
            alone = node.style is None and self._placeholder.fullmatch(node.value)
            data = found[0].typed if alone else self._filled(node.value, node.style == '"')
            start, end = node.start_mark.index, node.end_mark.index
            self.spans[start] = ScalarSpan(start, end, node.style in {"|", ">"}, data)
            return data
        if node.tag in _TEXTS or (node.tag in _NUMBERS and ":" in node.value):
            return node.value
        if node.tag not in _SCALARS:
            raise _NodeRefused(f"the tag {node.tag} is not accepted", node.start_mark)
        try:
            return self._constructor.construct_object(node)
        except (ValueError, KeyError) as error:
            raise _NodeRefused(f"{node.value!r} is no {node.tag.removeprefix(_TAG)}", node.start_mark) from error

    def _filled(self, text: str, in_double_quotes: bool) -> str:
        part = attrgetter("in_double_quotes" if in_double_quotes else "text")
        return self._placeholder.sub(lambda match: part(self._values[int(match[1])]), text)

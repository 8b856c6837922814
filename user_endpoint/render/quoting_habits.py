"""Three habits of templates of Globus Compute that mean something else here, where a text has no quotes of JSON.

There, `PARTITION == '"gpu"'` is true, `X[1:-1]` takes the quotes off, and `+ProjectName = {{ X }}` writes them. Here
the first is never true, the second cuts the text itself, and the third leaves them out. No error tells of that, hence
this search.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.meta import find_referenced_templates

from mep_wire.bundle import UepBundle
from mep_wire.errors import EndpointMisconfigured
from user_endpoint.render.sandbox import PieceEnvironment

_PERHAPS = re.compile(r"\[\s*1\s*:\s*-\s*1\s*\]|'\"|\\\"|\+\w+\s*=\s*\{\{")
"""Found in each text that has one of the habits, so that other templates are not parsed twice at a start."""
_ATTRIBUTE = re.compile(r"(?:^|\n|[\"'])[ \t]*\+(\w+)[ \t]*=[ \t]*$")
_OLD_MEANING = "or set quoting: json in config.yaml, for Globus Compute's meaning of the whole template"


@dataclass(frozen=True, slots=True)
class Habit:
    """One place, and what to write there."""

    template: str
    line: int
    text: str


def refuse_habits(bundle: UepBundle) -> None:
    """Raise EndpointMisconfigured for the first habit in the templates of `bundle`."""
    for habit in habits_of(bundle):
        raise EndpointMisconfigured(detail=f"{habit.template}: line {habit.line}: {habit.text}")


def habits_of(bundle: UepBundle) -> list[Habit]:
    """Return the habits in the template of `bundle` and in those that it uses; none with `quoting: json`."""
    if bundle.quoting == "json" or not any(map(_PERHAPS.search, bundle.templates.values())):
        return []
    properties = (bundle.schema or {}).get("properties", {})
    found = []
    for name, tree in _used_templates(bundle):
        finder = _Finder(properties if isinstance(properties, Mapping) else {})
        found += [Habit(name, line, text) for line, text in finder.find(tree)]
    return found


def _used_templates(bundle: UepBundle) -> Iterator[tuple[str, nodes.Template]]:
    """Yield the template and those that it includes. One that can't be parsed is reported elsewhere."""
    environment = PieceEnvironment(bundle.templates)
    waiting, seen = [bundle.template_name], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in bundle.templates:
            continue
        seen.add(name)
        try:
            tree = environment.parse(bundle.templates[name])
        except TemplateSyntaxError:
            continue
        yield name, tree
        used = list(find_referenced_templates(tree))
        waiting += list(bundle.templates) if None in used else [one for one in used if one is not None]


class _Finder:
    def __init__(self, properties: Mapping[str, Any]) -> None:
        self._properties = properties

    def find(self, tree: nodes.Template) -> Iterator[tuple[int, str]]:
        """Yield line and text of each habit."""
        for compared in tree.find_all(nodes.Compare):
            yield from self._compared(compared)
        for item in tree.find_all(nodes.Getitem):
            yield from self._sliced(item)
        for output in tree.find_all(nodes.Output):
            for before, expression in zip(output.nodes, output.nodes[1:], strict=False):
                yield from self._written(before, expression)

    def _compared(self, node: nodes.Compare) -> Iterator[tuple[int, str]]:
        for value in (one for constant in node.find_all(nodes.Const) for one in _texts(constant.value)):
            inner = _json_text(value)
            if inner is not None:
                written = json.dumps(inner)
                wrong = f"compares with '{value}', quotes included, which no text here equals"
                yield node.lineno, f"{wrong}: write {written} in place of '{value}', {_OLD_MEANING}"

    def _sliced(self, node: nodes.Getitem) -> Iterator[tuple[int, str]]:
        source = _source(node.node)
        if source and _is_slice_of_quotes(node.arg) and self._may_be(node.node, "string"):
            wrong = f"{source}[1:-1] cuts the first and the last character off the text, which has no quotes here"
            right = f"{source} (of a list: ({source} | list)[1:-1])"
            yield node.lineno, f"{wrong}: write {right}, {_OLD_MEANING}"

    def _written(self, before: nodes.Node, expression: nodes.Node) -> Iterator[tuple[int, str]]:
        if not isinstance(before, nodes.TemplateData) or isinstance(expression, nodes.TemplateData):
            return
        found = _ATTRIBUTE.search(before.data)
        writes_json = isinstance(expression, nodes.Filter) and expression.name == "tojson"
        if found and not writes_json and self._may_be(expression, "string"):
            source = _source(expression)
            wanted = f"{{{{ {source} | tojson }}}}" if source else "{{ (...) | tojson }}"
            wrong = f"+{found[1]} gets a text without quotes, which HTCondor reads as an expression"
            yield expression.lineno, f"{wrong}: write +{found[1]} = {wanted}, {_OLD_MEANING}"

    def _may_be(self, node: nodes.Node, kind: str) -> bool:
        """Whether the schema leaves open that a variable is of a type."""
        declared = self._properties.get(node.name) if isinstance(node, nodes.Name) else None
        kinds = declared.get("type", kind) if isinstance(declared, Mapping) else kind
        return kind in ([kinds] if isinstance(kinds, str) else kinds)


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [one for one in values if isinstance(one, str)]


def _json_text(value: str) -> str | None:
    if len(value) < 3 or value[0] != '"' or value[-1] != '"':
        return None
    try:
        return str(json.loads(value))
    except ValueError:
        return None


def _is_slice_of_quotes(node: nodes.Expr) -> bool:
    if not isinstance(node, nodes.Slice) or node.step is not None or node.start is None or node.stop is None:
        return False
    try:
        return (node.start.as_const(), node.stop.as_const()) == (1, -1)
    except nodes.Impossible:
        return False


def _source(node: nodes.Node) -> str:
    """Return a variable or an attribute as the template writes it; empty for any other expression."""
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getattr):
        owner = _source(node.node)
        return f"{owner}.{node.attr}" if owner else ""
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        owner = _source(node.node)
        return f"{owner}[{node.arg.value!r}]" if owner else ""
    return ""

"""Which branches of a template have been taken: for `mep check`, which looks for values that take each.

The tests of `if`, `elif` and of conditional expressions, and the bodies of loops, report to the environment. What is
rendered stays the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jinja2 import TemplateSyntaxError, nodes
from jinja2.meta import find_undeclared_variables

from user_endpoint.render.sandbox import PieceEnvironment

BranchId = tuple[str, int, str, int]
"""Template, line, `if` or `for`, and a number that tells those of a template apart."""


@dataclass(frozen=True)
class Branch:
    """A decision of a template. `names` are the variables that it and those around it read."""

    id: BranchId
    names: frozenset[str]

    @property
    def sides(self) -> tuple[bool, ...]:
        """The outcomes that are to be seen: of a loop, its body alone."""
        return (True,) if self.id[2] == "for" else (True, False)


class BranchEnvironment(PieceEnvironment):
    """The sandbox of a start, which also notes the outcome of each decision. Made by `branch_environment`."""

    branches: ClassVar[dict[BranchId, Branch]]
    seen: ClassVar[set[tuple[BranchId, bool]]]

    def _generate(
        self, source: nodes.Template, name: str | None, filename: str | None, defer_init: bool = False
    ) -> str:
        _Instrument(self, name or "").visit(source, frozenset())
        return super()._generate(source, name, filename, defer_init)

    def decide(self, number: BranchId, value: object) -> bool:
        """Note and return whether a test is true. Raises jinja2's UndefinedError."""
        outcome = bool(value)
        self.seen.add((number, outcome))
        return outcome


def branch_environment() -> type[BranchEnvironment]:
    """Return an environment with a memory of its own."""
    return type("BranchEnvironment", (BranchEnvironment,), {"branches": {}, "seen": set()})


class _Instrument:
    """Puts a call around each test, and one into each loop's body."""

    def __init__(self, environment: BranchEnvironment, template: str) -> None:
        self._environment, self._template, self._count = environment, template, 0

    def visit(self, node: nodes.Node, around: frozenset[str]) -> None:
        """Change `node` and its content. `around` are the variables of the decisions around it."""
        inner = around
        if isinstance(node, nodes.If | nodes.CondExpr):
            test: Any = node.test  # jinja2 annotates that of `if` as any node
            inner = around | _names(test)
            node.test = self._call("if", node.lineno, inner, test)
        elif isinstance(node, nodes.For):
            inner = around | _names(node.iter)
            mark = self._call("for", node.lineno, inner, nodes.Const(True, lineno=node.lineno))
            node.body = [nodes.ExprStmt(mark, lineno=node.lineno), *node.body]
        for child in node.iter_child_nodes():
            self.visit(child, inner)

    def _call(self, kind: str, line: int, names: frozenset[str], value: nodes.Expr) -> nodes.Call:
        self._count += 1
        number = (self._template, line, kind, self._count)
        self._environment.branches.setdefault(number, Branch(number, names))
        decide = nodes.EnvironmentAttribute("decide", lineno=line)
        return nodes.Call(decide, [nodes.Const(number, lineno=line), value], [], None, None, lineno=line)


def _names(node: nodes.Node) -> frozenset[str]:
    found = [*([node] if isinstance(node, nodes.Name) else []), *node.find_all(nodes.Name)]
    return frozenset(name.name for name in found)


@dataclass(frozen=True)
class TemplateFacts:
    """What the text of all templates tells: variables with their places, and constants that they are compared with.

    Constants that a local name is compared with are those of the empty name.
    """

    variables: dict[str, tuple[str, int]]
    constants: dict[str, list[Any]]


def template_facts(templates: Mapping[str, str]) -> TemplateFacts:
    """Return the facts of all templates that can be parsed."""
    environment = PieceEnvironment(templates)
    variables: dict[str, tuple[str, int]] = {}
    constants: dict[str, list[Any]] = defaultdict(list)
    for template, text in templates.items():
        try:
            parsed = environment.parse(text)
            free = find_undeclared_variables(parsed)
        except TemplateSyntaxError:
            continue
        for node in parsed.find_all(nodes.Name):
            if node.name in free and node.ctx == "load":
                variables.setdefault(node.name, (template, node.lineno))
        for compared in parsed.find_all(nodes.Compare):
            keys = _keys(compared)
            if not keys & free:
                keys |= {""}  # the argument of a macro or a loop's variable, which may hold any of them
            for name in keys:
                constants[name] += [value for value in _constants(compared) if value not in constants[name]]
    return TemplateFacts(variables, dict(constants))


def _keys(node: nodes.Node) -> frozenset[str]:
    """Return the variables and attributes that a comparison reads."""
    attributes = {found.attr for found in node.find_all(nodes.Getattr)}
    items = {found.arg.value for found in node.find_all(nodes.Getitem) if isinstance(found.arg, nodes.Const)}
    return _names(node) | attributes | {item for item in items if isinstance(item, str)}


def _constants(node: nodes.Node) -> Iterator[Any]:
    for constant in node.find_all(nodes.Const):
        value = constant.value  # the parser makes one constant of a list of constants
        yield from value if isinstance(value, list | tuple) else [value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield from (value + 1, value - 1)

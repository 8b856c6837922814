"""expression_identity_mapping#1.0.0: rules that match a text made of an identity's fields.

Semantics: the public Globus Connect Server identity mapping guide. The first rule that matches any of the
identities decides. A rule does not apply to an identity that lacks a field of the rule's `source`. If the
identity lacks a field of its `output`, the rule gives no name and the person is refused.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from identity.base import Identity, LookupOptions, MappingAnswer, Trace, label
from identity.document import MappingDocument
from identity.errors import NameRefused
from identity.expression.pattern import Pattern, PatternInvalid, compile_literal, compile_pattern
from identity.expression.rule_index import RuleIndex
from identity.template import Missing, Template, TemplateInvalid

DATA_TYPE = "expression_identity_mapping#1.0.0"
PLACEHOLDER = "change-me.invalid"
_BARE_DOT = re.compile(r"@([A-Za-z0-9\\.-]*?[A-Za-z0-9-]\.[A-Za-z0-9-][A-Za-z0-9\\.-]*)")
"""The domain of a pattern in which a dot has no backslash before it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `mappings`."""

    where: str
    source: Template
    pattern: Pattern
    output: Template
    end_user: Pattern | None = None
    """What the gateway's end user must match too. The identity itself has to match in any case."""

    def answer(self, identity: Identity, groups: tuple[str, ...]) -> MappingAnswer:
        """Return the rule's output for `identity`, which it matches. Raises NameRefused."""
        try:
            return MappingAnswer(identity, self.output.fill(identity, groups), self.where, self.output.is_literal)
        except Missing as error:
            raise NameRefused(f"{self.where} matches {label(identity)}, but for its output {error}") from None


class ExpressionMapper:
    """All entries of one document, in order."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self._sources: dict[str, tuple[Template, RuleIndex]] = {}
        for where, rule in enumerate(rules):
            self._sources.setdefault(rule.source.text, (rule.source, RuleIndex()))[1].add(where, rule.pattern)
        self.description = f"expression mapping of {len(rules)} rules"
        self.asks_end_user = any(rule.end_user is not None for rule in rules)
        """Whether any rule depends on a gateway's end user."""

    def answers(
        self, identities: Sequence[Identity], trace: Trace | None, how: LookupOptions
    ) -> Sequence[MappingAnswer]:
        """Return the output of the first matching rule for each identity that it matches."""
        for rule in self._rules if trace else self._candidates(identities):
            found = [
                answer for identity in identities if (answer := _apply(rule, identity, trace, how.end_user)) is not None
            ]
            if found:
                return found
        return ()

    def close(self) -> None:
        """Nothing to let go of."""

    def _candidates(self, identities: Sequence[Identity]) -> list[Rule]:
        """Return the rules that are worth trying, in order."""
        numbers: set[int] = set()
        for source, index in self._sources.values():
            for identity in identities:
                with contextlib.suppress(Missing):
                    numbers |= index.candidates(source.fill(identity))
        return [self._rules[where] for where in sorted(numbers)]


def _apply(rule: Rule, identity: Identity, trace: Trace | None, end_user: str) -> MappingAnswer | None:
    try:
        source = rule.source.fill(identity)
    except Missing as error:
        if trace:
            trace(f"{rule.where}: {label(identity)}: {error}")
        return None
    groups = rule.pattern.match(source)
    if trace:
        verb = "does not match" if groups is None else "matches"
        trace(f"{rule.where}: {label(identity)}: {source!r} {verb} {rule.pattern.text!r}")
    if groups is None or rule.end_user is None:
        return None if groups is None else rule.answer(identity, groups)
    more = rule.end_user.match(end_user) if end_user else None
    if trace:
        verb = "does not match" if more is None else "matches"
        trace(f"{rule.where}: end user {end_user!r} {verb} {rule.end_user.text!r}")
    return None if more is None else rule.answer(identity, groups + more)


def from_document(document: MappingDocument) -> ExpressionMapper:
    """Return the mapper for `document`. Raises DocumentInvalid."""
    entries = document.take_list("mappings")
    return ExpressionMapper(
        [
            _rule(MappingDocument(entry, f"mappings[{i}]", document.doubts), f"mappings[{i}]")
            for i, entry in enumerate(entries)
        ]
    )


def _rule(entry: MappingDocument, where: str) -> Rule:
    literal, ignore_case = entry.take_flag("literal", False), entry.take_flag("ignore_case", False)
    source, match, output = (entry.take_text(key) for key in ("source", "match", "output"))
    end_user = _end_user(entry, ignore_case)
    entry.end()
    try:
        pattern = compile_literal(match, ignore_case) if literal else compile_pattern(match, ignore_case)
    except PatternInvalid as error:
        raise entry.refuse("match", error) from None
    entry.doubt("match", doubt_of(match, literal=literal))
    groups = pattern.groups + (end_user.groups if end_user else 0)
    return Rule(where, _template(entry, "source", source, 0), pattern, _template(entry, "output", output, groups),
                end_user)  # fmt: skip


def _end_user(entry: MappingDocument, ignore_case: bool) -> Pattern | None:
    if not entry.has("end_user"):
        return None
    text = entry.take_text("end_user")
    try:
        return compile_pattern(text, ignore_case)
    except PatternInvalid as error:
        raise entry.refuse("end_user", error) from None


def doubt_of(match: str, *, literal: bool) -> str:
    """Return why a `match` is probably not what its author means; empty if nothing is odd."""
    if PLACEHOLDER in match.replace("\\", ""):
        return f"{PLACEHOLDER} is the placeholder of `mep configure`, so this maps nobody: put in your own domain"
    if not literal and (found := _BARE_DOT.search(match)):
        meant = json.dumps(re.sub(r"(?<!\\)\.", r"\\.", found[1]))
        return f"a dot in {found[1]!r} stands for any character, so other domains match too; write {meant}"
    return ""


def _template(entry: MappingDocument, key: str, text: str, groups: int) -> Template:
    try:
        template = Template(text, groups)
    except TemplateInvalid as error:
        raise entry.refuse(key, error) from None
    entry.doubt(key, template.doubt)
    return template

"""One answer or none: the order of mappers and rules, ambiguity, failures, and the output of `explain`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from identity import loader
from identity.base import Identity, LookupOptions, MappingAnswer, Trace
from identity.chain import MAX_FIELD_CHARS, Chain, ChainEntry
from identity.errors import AmbiguousMapping, NameRefused, NoMapping, SourceUnavailable

Loader = Callable[..., Chain]


def who(username: str, **fields: str) -> dict[str, str]:
    return {"id": f"id of {username}", "username": username, "status": "used", **fields}


def rules(*entries: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": list(entries), **keys}


def rule(match: str, output: str, source: str = "{username}", **keys: Any) -> dict[str, Any]:
    return {"source": source, "match": match, "output": output, **keys}


@pytest.fixture
def load(tmp_path: pathlib.Path) -> Loader:
    def make(*documents: dict[str, Any]) -> Chain:
        path = tmp_path / "identity_mapping.json"
        path.write_text(json.dumps(documents))
        return loader.load(path)

    return make


GENERAL = rule(r"(.*)@example\.edu", "{0}")
ALICE, BOB = who("alice@example.edu"), who("bob@example.edu")


class Broken:
    """A mapper that always fails."""

    description = "broken"

    def answers(
        self, identities: Sequence[Identity], trace: Trace | None, how: LookupOptions
    ) -> Sequence[MappingAnswer]:
        raise SourceUnavailable("down")

    def close(self) -> None: ...


class Fixed:
    """A mapper that maps every identity to `name`."""

    description = "fixed"

    def __init__(self, name: str) -> None:
        self._name = name

    def answers(
        self, identities: Sequence[Identity], trace: Trace | None, how: LookupOptions
    ) -> Sequence[MappingAnswer]:
        return [MappingAnswer(identity, self._name, "fixed") for identity in identities]

    def close(self) -> None: ...


# --- expressions -------------------------------------------------------------------------------------


def test_rules_in_order_and_the_identity_that_decided(load: Loader) -> None:
    chain = load(rules(rule(r"alice@example\.edu", "al"), GENERAL))
    user = chain.map([who("x@example.org"), ALICE])
    assert (user.name, user.identity) == ("al", ALICE)
    assert user.mapper == "document 0: expression mapping of 2 rules, mappings[0]"
    assert chain.map([BOB]).name == "bob"


def test_an_exact_entry_before_a_general_one_is_not_ambiguous(load: Loader) -> None:
    chain = load(rules(rule(r"alice@example\.edu", "al"), GENERAL))
    assert chain.map([BOB, ALICE]).name == "al"


def test_one_entry_with_two_users_is_ambiguous_unless_the_site_takes_the_first(load: Loader) -> None:
    with pytest.raises(AmbiguousMapping, match=r"alice@example\.edu -> 'alice', bob@example\.edu -> 'bob'"):
        load(rules(GENERAL)).map([ALICE, BOB])
    assert load(rules(GENERAL, ambiguous="first")).map([BOB, ALICE]).name == "bob"
    assert load(rules(rule(".*", "shared"))).map([BOB, ALICE]).name == "shared"


@pytest.mark.parametrize(
    ("status", "counts"), [("used", True), ("private", True), ("unused", False), ("closed", False), ("USED", False)]
)
def test_status(load: Loader, status: str, counts: bool) -> None:
    chain = load(rules(GENERAL))
    if counts:
        assert chain.map([{**ALICE, "status": status}]).name == "alice"
    else:
        with pytest.raises(NoMapping):
            chain.map([{**ALICE, "status": status}])


def test_identities_that_do_not_count_are_seen_by_no_mapper(load: Loader) -> None:
    chain = load(rules(GENERAL))
    no_status = {key: value for key, value in BOB.items() if key != "status"}
    no_id = {key: value for key, value in BOB.items() if key != "id"}
    assert chain.map([no_status, no_id, {**BOB, "status": "unused"}, ALICE]).name == "alice"
    for nothing in ([], [no_status], [{}]):
        with pytest.raises(NoMapping):
            Chain([ChainEntry(Fixed("alice"))]).map(nothing)


def test_fields_that_cannot_be_used_count_as_absent(load: Loader) -> None:
    chain = load(rules(rule("(.*)", "{0}", source="{name}")))
    for value in ("\ud800", "x" * (MAX_FIELD_CHARS + 1), None, 7, ["alice"]):
        with pytest.raises(NoMapping):
            chain.map([{**ALICE, "name": value}])
    assert chain.map([{**ALICE, "name": "x"}]).name == "x"


def test_a_rule_whose_source_lacks_a_field_does_not_apply(load: Loader) -> None:
    assert load(rules(rule(".*", "x", source="{nickname}"), GENERAL)).map([ALICE]).name == "alice"


@pytest.mark.parametrize("output", ["{nickname}", "{empty}", "{0}{empty}x/", "-{0}"])
def test_a_rule_that_matches_but_gives_no_name_refuses(load: Loader, output: str) -> None:
    chain = load(rules(rule("(al).*", output), GENERAL), rules(rule(".*", "guest")))
    with pytest.raises(NameRefused):
        chain.map([{**ALICE, "empty": ""}])


def test_values_are_not_interpolated_again(load: Loader) -> None:
    chain = load(rules(rule("(.*) (.*)", "{1}", source="{name} {username}")))
    hostile = who("bob", name="{username}", email="root")
    assert chain.map([hostile]).name == "bob"
    chain = load(rules(rule("(.*)", "{0}", source="{name}")))
    with pytest.raises(NameRefused):
        chain.map([who("x", name="{email}", email="root")])


def test_flags(load: Loader) -> None:
    assert load(rules(rule("ALICE@EXAMPLE.EDU", "al", ignore_case=True))).map([ALICE]).name == "al"
    assert load(rules(rule("a.c*", "al", literal=True), rule(".*", "other"))).map([who("a.c*")]).name == "al"
    assert load(rules(rule("a.c*", "al", literal=True), rule(".*", "other"))).map([who("abc")]).name == "other"


def test_only_rules_that_may_match_are_tried_and_the_answer_is_the_same(load: Loader) -> None:
    entries = [rule(rf"user{i}@site{i % 7}\.edu", f"u{i}", ignore_case=i % 2 == 0) for i in range(200)]
    entries += [rule(r"user(.*)@SITE3\.EDU", "g{0}", ignore_case=True), rule("staff-(.*)", "s{0}"), rule("a|b", "ab")]
    chain = load(rules(*entries, rule("x", "by-name", source="{name}")))
    expected = {
        "user10@site3.edu": "u10",
        "USER10@site3.edu": "u10",
        "user11@site4.edu": "u11",
        "user9999@site3.edu": "g9999",
        "staff-x": "sx",
        "b": "ab",
        "USER11@site4.edu": None,
        "user11@site5.edu": None,
        "": None,
    }
    for username, name in expected.items():
        explanation = chain.explain([who(username)])
        if name is None:
            with pytest.raises(NoMapping):
                chain.map([who(username)])
            assert isinstance(explanation.error, NoMapping)
        else:
            assert chain.map([who(username)]).name == name
            assert explanation.user is not None
            assert explanation.user.name == name
    assert chain.map([who("nothing", name="x")]).name == "by-name"


# --- domains -----------------------------------------------------------------------------------------


def domain(value: Any = "example.edu", **keys: Any) -> dict[str, Any]:
    return {"DATA_TYPE": "domain_identity_mapping#1.0.0", "domain": value, **keys}


@pytest.mark.parametrize(
    ("username", "name"),
    [
        ("alice@example.edu", "alice"),
        ("alice@EXAMPLE.edu", "alice"),
        ("Alice@example.edu", "Alice"),
        ("alice@cs.example.edu", None),
        ("alice@example.edu.evil.org", None),
        ("alice@example.edu\n", None),
        ("alice@example.ed\u1d58", None),
        ("alice", None),
        ("example.edu", None),
    ],
)
def test_domain(load: Loader, username: str, name: str | None) -> None:
    chain = load(domain())
    if name is None:
        with pytest.raises(NoMapping):
            chain.map([who(username)])
    else:
        assert chain.map([who(username)]).name == name


@pytest.mark.parametrize("username", ["@example.edu", "a@b@example.edu", "../x@example.edu", "-x@example.edu"])
def test_domain_with_an_impossible_name(load: Loader, username: str) -> None:
    with pytest.raises(NameRefused):
        load(domain()).map([who(username)])


def test_several_domains_and_a_provider(load: Loader) -> None:
    chain = load(domain(["example.edu", "Example.ORG"], identity_provider="1F8BA017-6224-43ad-a42f-03059574ba38"))
    provider = "1f8ba017-6224-43ad-a42f-03059574ba38"
    assert chain.map([who("bob@example.org", identity_provider=provider)]).name == "bob"
    for other in ({}, {"identity_provider": ""}, {"identity_provider": "00000000-6224-43ad-a42f-03059574ba38"}):
        with pytest.raises(NoMapping):
            chain.map([who("bob@example.org", **other)])
    with pytest.raises(AmbiguousMapping):
        load(domain()).map([ALICE, BOB])


# --- chains ------------------------------------------------------------------------------------------


def test_the_first_mapper_that_answers_wins(load: Loader) -> None:
    assert load(rules(rule("x", "y")), domain(), rules(rule(".*", "guest"))).map([ALICE]).name == "alice"


def test_a_mapper_that_fails_stops_the_chain_unless_the_site_lets_it_go_on() -> None:
    with pytest.raises(SourceUnavailable, match="document 0: broken: down"):
        Chain([ChainEntry(Broken()), ChainEntry(Fixed("guest"))]).map([ALICE])
    assert Chain([ChainEntry(Broken(), pass_on_error=True), ChainEntry(Fixed("guest"))]).map([ALICE]).name == "guest"
    assert Chain([ChainEntry(Fixed("guest")), ChainEntry(Broken())]).map([ALICE]).name == "guest"
    with pytest.raises(NoMapping):
        Chain([ChainEntry(Broken(), pass_on_error=True)]).map([ALICE])


def test_an_ambiguity_stops_the_chain_whatever_on_error_says(load: Loader) -> None:
    with pytest.raises(AmbiguousMapping):
        load(rules(GENERAL, on_error="next"), rules(rule(".*", "guest"))).map([ALICE, BOB])


def test_explain_says_what_each_mapper_answered_and_why(load: Loader) -> None:
    chain = load(rules(rule("x", "y")), domain(), rules(rule(".*", "guest")))
    explanation = chain.explain([{**BOB, "status": "unused"}, ALICE])
    assert [step.outcome for step in explanation.steps] == ["nothing", "answered", "not tried"]
    assert explanation.steps[0].trace == ["mappings[0]: alice@example.edu: 'alice@example.edu' does not match 'x'"]
    assert explanation.ignored == ["bob@example.edu: its status is unused, not used or private"]
    assert explanation.user is not None
    assert explanation.user.name == "alice"


def test_explain_shows_failures_and_refusals(load: Loader) -> None:
    explanation = Chain(
        [ChainEntry(Broken(), pass_on_error=True), ChainEntry(Broken()), ChainEntry(Fixed("x"))]
    ).explain([ALICE])
    assert [step.outcome for step in explanation.steps] == ["failed", "failed", "not tried"]
    assert "passed over" in explanation.steps[0].reason
    assert isinstance(explanation.error, SourceUnavailable)
    ambiguous = load(rules(GENERAL)).explain([ALICE, BOB])
    assert ambiguous.steps[0].outcome == "ambiguous"
    assert [answer.name for answer in ambiguous.steps[0].answers] == ["alice", "bob"]
    refused = load(rules(rule("(.*)", "{0}"))).explain([ALICE])
    assert (refused.steps[0].outcome, type(refused.error)) == ("refused", NameRefused)
    assert isinstance(load(rules(GENERAL)).explain([]).error, NoMapping)

r"""Expression mapping compared with the published `globus-identity-mapping` package, over generated documents.

Both are given the same rules and the same identities. Where they differ, it must be for one of the reasons below; each
is deliberate. "Published" is globus-identity-mapping 0.6.

Refused at load here, while the published package accepts them:
 R1  `(?...)`: the guide's language has no such thing; Python's re takes it for its own extensions.
 R2  `\0`..`\9`: back-references are not in the guide and cannot run in linear time.
 R3  a lone backslash at the end, which the published package joins with the `$` that it appends.
 R4  `{}` and other references that are neither a field's name nor a group of the pattern. The published package notices
     them only when it maps. It takes a negative number for a group counted from the end.
Accepted here, while the published package refuses them:
 A1  `\"`, which its own documentation allows. An escaped backslash before an ordinary character: it takes the second
     backslash for the beginning of another escape. `\*?` and `\??`, an optional escaped character: it takes them for
     lazy wildcards.
 A2  a `literal` with a backslash in it, if the text that leaks through (D3) isn't a valid pattern.
Different answers:
 D1  `a|b`: the published package anchors only the first and the last alternative, so `a|b` matches any text that
     begins with `a`. Here the whole text must match, as the guide says.
 D2  a trailing newline: Python's `$` lets it pass.
 D3  `literal`: the published package doesn't escape the text after a backslash, which lets a pattern leak through.
 D4  values that look like `{field}` are interpolated a second time by the published package; so is a reference that a
     backslash protects, where the same one stands elsewhere without.
 D5  ignore_case: Python takes the Kelvin sign for a `k`, the long s for an `s` and the dotless i for an `i`.
 D6  a group that took no part in the match gives an empty text here and an error there.
 D7  an identity that lacks a field of the source: the rule does not apply to it here; there the whole mapper fails.
 D8  a group inside a repetition that can match the empty text may hold another of several possible texts: RE2 and
     Python's re end such loops at different times. Which identities match is the same.

Of chains (several documents, as a Globus Compute endpoint goes through them):
 C1  a mapper that fails (D6, D7): there the next one decides; here it stops the chain, unless `on_error: next`.
 C2  an entry with several users for one person: there the first is taken; here it is refused, unless
     `ambiguous: first`.
 C3  an output that is empty or cannot be a POSIX user name: there it goes on to the look-up of the account; here it is
     refused, and no later rule is tried.
 C4  a document of an unknown type: there it is skipped with a warning; here the file is refused.
 C5  a callout that writes nothing: there it maps no identity; here it has failed (as `{}` and other malformed output
     has on both sides).

The property test avoids D1 and D3 by giving the published package a corrected form of the rule. It avoids D2, D4 and D5
by never generating a text that leads to them. It recognises the others by their effect. Each has an example below.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
from typing import Any

import pytest
from globus_identity_mapping.errors import IdentityMappingError, InvalidMappingError
from globus_identity_mapping.loader import load_mappers
from globus_identity_mapping.mappers.expression import ExpressionIdentityMapping
from globus_identity_mapping.mappers.external_program import ExternalIdentityMapping
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from identity import loader, usernames
from identity.base import LookupOptions
from identity.callout import mapper as callout
from identity.callout import process
from identity.chain import Chain, ChainEntry, considered
from identity.document import MappingDocument, MappingDocumentInvalid
from identity.errors import AmbiguousMapping, MappingFileInvalid, NameRefused, NoMapping, SourceUnavailable
from identity.expression.mapper import from_document

pytestmark = pytest.mark.timeout(900)  # hundreds of examples, on a host that may be busy
Result = list[tuple[str, str]] | None
"""The answer of the first matching rule: (id, user name) of each identity, or None without a match."""


def ours(rules: list[dict[str, Any]], people: list[dict[str, str]]) -> Result:
    mapper = from_document(MappingDocument({"mappings": rules}))
    found = mapper.answers(considered(people)[0], None, LookupOptions())
    return [(answer.identity["id"], answer.name) for answer in found] or None


def published(rules: list[dict[str, Any]], people: list[dict[str, str]]) -> Result:
    for found in ExpressionIdentityMapping(rules).map_identities(people):
        if found:
            return [(key, name) for key, names in found.items() for name in names]
    return None


def reason_for_refusal_here(each: dict[str, Any], error: MappingDocumentInvalid) -> str:
    """Return which listed difference `error` is, where the published package accepts the rule; empty if none."""
    text = str(error)
    if "nothing before it to repeat" in text and "(?" in each["match"]:
        return "R1"
    if "is not an escape" in text and re.search(r"\\[0-9]", each["match"]):
        return "R2"
    if "lone backslash" in text:
        return "R3"
    return "R4" if "refers to a match group" in text or "is neither the name" in text else ""


def reason_for_refusal_there(each: dict[str, Any]) -> str:
    """Return which listed difference explains why the published package refuses rules that load here; empty if none."""
    if each.get("literal"):
        return "A2" if "\\" in each["match"] else ""
    return "A1" if re.search(r'\\["\\]|\\[*?]\?', each["match"]) else ""


def as_it_should_read(each: dict[str, Any]) -> dict[str, Any]:
    """Return the rule for the published package without its two slips in reading patterns (D1, D3)."""
    if each.get("literal"):
        plain = {**each, "literal": False, "match": re.sub(r"([.?*|()\\])", r"\\\1", each["match"])}
        return plain if _loads_there(plain) else each
    return {**each, "match": f"(?:{each['match']})"} if "|" in each["match"] else each


def _loads_there(each: dict[str, Any]) -> bool:
    try:
        ExpressionIdentityMapping([each])
    except InvalidMappingError:
        return False
    return True


def reason_for_error_there(error: IdentityMappingError) -> str:
    """Return which listed difference it is that the published package fails; empty if none."""
    found = re.fullmatch(r"Missing identity property (.*)", str(error), re.DOTALL)
    if found is None:
        return ""
    return "D6" if found[1].isdigit() else "D7"


def differs_in_groups_alone(rules: list[dict[str, Any]], mine: Result, theirs: Result) -> bool:
    """Whether the same identities match, and only the text of groups in a repetition differs (D8)."""
    ids = [[key for key, _ in result or []] for result in (mine, theirs)]
    return ids[0] == ids[1] and any(re.search(r"\)[*?]", each["match"]) for each in rules)


ATOM = st.sampled_from(["a", "a", "b", "b", ".", ".", "A", "@"]) | st.sampled_from(
    [r"\.", r"\*", r"\(", r"\\", "$", "^", "+", "{", "[", "]", "é", "1"]
)


def _repeated(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(inner, st.sampled_from(["", "", "", "*", "?"])).map("".join)


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    several = st.lists(inner, min_size=1, max_size=3).map("".join)
    return _repeated(several.map(lambda text: f"({text})")) | several | st.tuples(several, several).map("|".join)


GOOD_PATTERN = st.recursive(_repeated(ATOM), _grown, max_leaves=6)
RAW_PATTERN = st.text(st.sampled_from('ab.?*|()\\"$^+{[]0'), max_size=8)
FIELD = st.sampled_from(["{username}", "{email}", "{name}"])
TEMPLATE = st.lists(FIELD | st.sampled_from(["a", "@", "x-", "}"]), min_size=1, max_size=3).map("".join)
VALUE = st.text(st.sampled_from("aabbA@"), max_size=4) | st.one_of(
    st.text(st.sampled_from("abA@.*(\\$^+}[]é1"), max_size=6), st.sampled_from(["alice@x.edu", "Alice@X.edu", "bob@"])
)
"""No newline (D2), no opening brace (D4), none of the letters of D5."""


@st.composite
def rule(draw: st.DrawFn) -> dict[str, Any]:
    match = draw(GOOD_PATTERN | RAW_PATTERN | st.sampled_from([r"(.*)@x\.edu", r"(alice|bob)@(.*)", "(a*)(b?)"]))
    outputs = [TEMPLATE, st.just("fixed")]
    if "(" in match:
        outputs += [st.just("{0}"), st.just("u{0}"), st.sampled_from(["{1}", "{-1}", "{ 0}", "{}"])]
    value = {"source": draw(FIELD | FIELD | TEMPLATE), "match": match, "output": draw(st.one_of(outputs))}
    for flag in ("literal", "ignore_case"):
        if draw(st.integers(0, 4)) == 0:
            value[flag] = True
    return value


@st.composite
def person(draw: st.DrawFn) -> dict[str, str]:
    value = {"id": str(draw(st.uuids())), "status": draw(st.sampled_from(["used", "private", "unused"]))}
    for field in ("username", "email", "name"):
        if draw(st.integers(0, 39)) != 23:
            value[field] = draw(VALUE)
    return value


@settings(max_examples=1500, deadline=None)
@given(rules=st.lists(rule(), min_size=1, max_size=2), people=st.lists(person(), min_size=1, max_size=2))
def test_both_agree_but_for_the_listed_differences(rules: list[dict[str, Any]], people: list[dict[str, str]]) -> None:
    rules = [each for each in rules if _loads_on_both_sides(each)]
    assume(rules)
    assume(not any(each.get("literal") and "\\" in each["match"] for each in rules))  # D3 can't be corrected there
    try:
        mine = ours(rules, people)
    except NameRefused:
        mine = None
    try:
        theirs = published([as_it_should_read(each) for each in rules], people)
    except IdentityMappingError as error:
        event(f"fails there: {reason_for_error_there(error)}")
        assert reason_for_error_there(error), error
        return
    event("agree: map" if mine else "agree: nothing")
    if mine != theirs:
        event("D8")
        assert differs_in_groups_alone(rules, mine, theirs), (rules, people, mine, theirs)


def _loads_on_both_sides(each: dict[str, Any]) -> bool:
    """Whether both load the rule. If only one does, it must be for a listed reason."""
    try:
        from_document(MappingDocument({"mappings": [each]}))
    except MappingDocumentInvalid as error:
        if _loads_there(each):
            assert reason_for_refusal_here(each, error), (each, error)
        return False
    if not _loads_there(each):
        assert reason_for_refusal_there(each), each
        return False
    return True


def first_user_there(documents: list[list[dict[str, Any]]], people: list[dict[str, str]]) -> tuple[str | None, bool]:
    """Return the user that a Globus Compute endpoint starts for `people`, and whether a mapper failed before."""
    failed = False
    configured = [{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": rules} for rules in documents]
    for mapper in load_mappers(configured, "connector", "gateway"):
        try:
            found = [mapping for mapping in mapper.map_identities(people) if mapping]
        except IdentityMappingError:
            failed = True
            continue
        if found:
            return next(iter(found[0].values()))[0], failed
    return None, failed


def chain_of(documents: list[list[dict[str, Any]]], *, like_there: bool) -> Chain:
    mappers = [from_document(MappingDocument({"mappings": rules})) for rules in documents]
    return Chain([ChainEntry(mapper, first_of_several=like_there, pass_on_error=like_there) for mapper in mappers])


def in_a_loop(documents: list[list[dict[str, Any]]]) -> bool:
    """Whether a group in a repetition decides (D8)."""
    return any(re.search(r"\)[*?]", each["match"]) for rules in documents for each in rules)


@settings(max_examples=800, deadline=None)
@given(
    documents=st.lists(st.lists(rule(), min_size=1, max_size=3), min_size=2, max_size=4),
    people=st.lists(person(), min_size=1, max_size=3),
)
def test_chains_of_documents_agree(documents: list[list[dict[str, Any]]], people: list[dict[str, str]]) -> None:
    documents = [[each for each in rules if _loads_on_both_sides(each)] for rules in documents]
    documents = [rules for rules in documents if rules]
    assume(len(documents) > 1 and not in_a_loop(documents))
    theirs, failed = first_user_there([[as_it_should_read(each) for each in rules] for rules in documents], people)
    assume(not failed)  # C1
    try:
        mine = chain_of(documents, like_there=True).map(people).name
    except NameRefused:
        event("C3")
        assert theirs is not None
        assert usernames.problem(theirs) is not None
        return
    except NoMapping:
        mine = None
    event("agree: map" if mine else "agree: nothing")
    assert mine == theirs
    with contextlib.suppress(AmbiguousMapping, NoMapping):  # C2: otherwise strictness changes nothing
        assert chain_of(documents, like_there=False).map(people).name == theirs


def test_each_listed_difference_of_chains_is_still_one(tmp_path: pathlib.Path) -> None:
    needs, general = _rule("(.*)", source="{nothing}"), _rule(r"(.*)@x\.edu")
    people = [*ONE, {**ONE[0], "id": "5cde4d0e-0000-4000-8000-00000000000b", "username": "bob@x.edu"}]
    assert first_user_there([needs, general], ONE) == ("alice", True)  # C1, by D7
    assert chain_of([needs, general], like_there=False).map(ONE).name == "alice"
    assert first_user_there([general], people) == ("alice", False)
    with pytest.raises(AmbiguousMapping):  # C2
        chain_of([general], like_there=False).map(people)
    assert chain_of([general], like_there=True).map(people).name == "alice"
    assert first_user_there([_rule(".*", "a/b"), general], ONE) == ("a/b", False)
    with pytest.raises(NameRefused):  # C3
        chain_of([_rule(".*", "a/b"), general], like_there=True).map(ONE)
    unknown = {"DATA_TYPE": "some_identity_mapping#1.0.0"}
    assert load_mappers([unknown], "connector", "gateway") == []
    path = tmp_path / "mapping.json"
    path.write_text(json.dumps([unknown]))
    with pytest.raises(MappingFileInvalid, match=r"document 0: DATA_TYPE: 'some_identity_mapping#1\.0\.0' is unknown"):
        loader.load(path)  # C4


ANSWER = """{"DATA_TYPE": "identity_mapping_output#1.0.0", "result": [%s]}"""
CALLOUTS = {
    "somebody": (f"echo '{ANSWER}'" % '{"id": "5cde4d0e-0000-4000-8000-00000000000a", "output": "alice"}', "alice"),
    "nobody": (f"echo '{ANSWER % ''}'", "nobody"),
    "nothing": ("exit 0", "C5"),
    "an empty object": ("echo '{}'", "failed"),
    "garbage": ("echo alice", "failed"),
    "another type": ("""echo '{"DATA_TYPE": "identity_mapping_output#2.0.0", "result": []}'""", "failed"),
    "a foreign id": (
        f"echo '{ANSWER}'" % '{"id": "5cde4d0e-0000-4000-8000-0000000000ff", "output": "alice"}',
        "failed",
    ),
    "a status": (f"echo '{ANSWER % ''}'; exit 1", "failed"),
}


@pytest.mark.parametrize("what", CALLOUTS)
def test_callouts_agree(tmp_path: pathlib.Path, what: str) -> None:
    text, expected = CALLOUTS[what]
    program = tmp_path / "callout"
    program.write_text(f"#!/bin/sh\ncat > /dev/null\n{text}\n")
    program.chmod(0o755)
    try:
        found = ExternalIdentityMapping(str(program), storage_gateway="g", connector="c").map_identities(ONE)
        there = next((users[0] for mapping in found for users in mapping.values()), "nobody")
    except (IdentityMappingError, InvalidMappingError, LookupError):  # a LookupError if there is no result
        there = "failed"
    try:
        output = process.run([str(program)], b"{}", 30)
        parsed = callout._parse(output.stdout, frozenset(one["id"] for one in ONE))
        here = parsed[0][1] if parsed else "nobody"
    except (SourceUnavailable, process.CommandFailed):
        here = "failed"
    assert (here, there) == (("failed", "nobody") if expected == "C5" else (expected, expected))


ONE = [{"id": "5cde4d0e-0000-4000-8000-00000000000a", "status": "used", "username": "alice@x.edu", "name": "n"}]


def _one(username: str, **fields: str) -> list[dict[str, str]]:
    return [{**ONE[0], "username": username, **fields}]


def _rule(match: str, output: str = "{0}", source: str = "{username}", **flags: bool) -> list[dict[str, Any]]:
    return [{"source": source, "match": match, "output": output, **flags}]


@pytest.mark.parametrize(
    ("difference", "rules", "people", "mine", "theirs"),
    [
        ("D1", _rule("alice|bob", "x"), _one("alice@evil.org"), None, "x"),
        ("D2", _rule("(alice)"), _one("alice\n"), None, "alice"),
        ("D3", _rule(r"a\.b", "x", literal=True), _one("a\\zb"), None, "x"),
        ("D4", _rule("(.*)", source="{name}{username}"), _one("bob", name="{username}"), "{username}bob", "bobbob"),
        ("D4", _rule("(.*)", source=r"{name}\{name}"), _one("bob", name="x"), r"x\{name}", r"x\x"),
        ("D5", _rule("(k.*)", ignore_case=True), _one("\u212aelvin"), None, "\u212aelvin"),
        ("D6", _rule("(a)?b", "x{0}"), _one("b"), "x", "error"),
        ("D7", _rule("(.*)", source="{nothing}"), ONE, None, "error"),
    ],
)  # fmt: skip
def test_each_listed_difference_is_still_one(
    difference: str, rules: list[dict[str, Any]], people: list[dict[str, str]], mine: str | None, theirs: str | None
) -> None:
    here = ours(rules, people)
    assert (here[0][1] if here else None) == mine, difference
    try:
        there = published(rules, people)
        assert (there[0][1] if there else None) == theirs, difference
    except IdentityMappingError:
        assert theirs == "error", difference


@pytest.mark.parametrize("match", ["(?:a)", "(?P<n>a)", r"(a)\1", "a\\"])
def test_what_only_the_published_package_loads(match: str) -> None:
    ExpressionIdentityMapping(_rule(match, "x"))
    with pytest.raises(MappingDocumentInvalid):
        from_document(MappingDocument({"mappings": _rule(match, "x")}))


@pytest.mark.parametrize("match", [r"\"a\"", r"\\d", r"a\*?"])
def test_what_loads_only_here(match: str) -> None:
    from_document(MappingDocument({"mappings": _rule(match, "x")}))
    with pytest.raises(InvalidMappingError):
        ExpressionIdentityMapping(_rule(match, "x"))


def test_a_pattern_that_stalls_the_published_package_does_not_stall_this_one() -> None:
    with contextlib.suppress(NameRefused):
        assert ours(_rule("(a*)*b"), _one("a" * 4000)) is None

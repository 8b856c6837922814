"""Property tests of mapping: whatever comes in, only named errors come out, and only names that a rule can produce."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity import loader, usernames
from identity.callout import mapper
from identity.chain import Chain, ChainEntry
from identity.concurrency_limits import PersonLimit
from identity.document import MappingDocument, MappingDocumentInvalid
from identity.errors import MappingError, MappingFileInvalid, SourceUnavailable
from identity.expression.mapper import from_document
from identity.expression.pattern import PatternInvalid, compile_pattern, fold
from identity.ldap import filter_values
from identity.tracked_files import Files

pytestmark = pytest.mark.timeout(900)  # hundreds of examples, on a host that may be busy

# Close to the language's own characters, which gives most generated texts a meaning.
PATTERN_TEXT = st.text(st.sampled_from('ab@.?*|()\\"{}[]^$+0é\n'), max_size=12)
PIECES = st.sampled_from([*"ab{}01\\-", "{username}", "{0}", "{1}", "{email}"])
TEMPLATE_TEXT = st.lists(PIECES, max_size=5).map("".join)
FIELD_TEXT = st.text(st.sampled_from("ab@.{}\\0\n\x00é\u212a\ud800") | st.characters(), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def identities(draw: st.DrawFn) -> list[dict[str, Any]]:
    keys = ["id", "username", "email", "name", "status", "identity_provider"]
    people = []
    for _ in range(draw(st.integers(0, 3))):
        fields: dict[str, Any] = {key: draw(FIELD_TEXT) for key in keys if draw(st.integers(0, 7))}
        fields["status"] = draw(st.sampled_from(["used", "private", "unused", "", None]))
        if draw(st.integers(0, 7)) == 0:
            fields[draw(st.sampled_from(keys))] = draw(JSON)
        people.append(fields)
    return people


@st.composite
def entries(draw: st.DrawFn) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "source": draw(TEMPLATE_TEXT | st.just("{username}")),
        "match": draw(PATTERN_TEXT | st.sampled_from(["(.*)", "(.*)@(.*)", "a(.*)"])),
        "output": draw(TEMPLATE_TEXT | st.sampled_from(["{0}", "u{0}", "x"])),
    }
    for flag in ("literal", "ignore_case"):
        if draw(st.integers(0, 3)) == 0:
            entry[flag] = draw(st.booleans())
    return entry


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return {"DATA_TYPE": "domain_identity_mapping#1.0.0", "domain": draw(FIELD_TEXT | st.just("b"))}
    document: dict[str, Any] = {
        "DATA_TYPE": "expression_identity_mapping#1.0.0",
        "mappings": draw(st.lists(entries(), min_size=1, max_size=4)),
    }
    if draw(st.integers(0, 3)) == 0:
        document["ambiguous"] = "first"
    return document


def possible(output: str) -> re.Pattern[str]:
    """Return the possible texts of `output`: its text as it is, and anything in place of every interpolation."""
    pieces = re.split(r"(?<!\\)((?:\\\\)*)\{[^}]*\}", output)
    text = [re.escape(a + b) for a, b in zip(pieces[::2], [*pieces[1::2], ""], strict=True)]
    return re.compile("(?s:.*)".join(text))


@settings(max_examples=600, deadline=None)
@given(document=documents(), people=identities())
def test_only_named_errors_and_only_names_that_an_output_can_produce(document: dict[str, Any], people: Any) -> None:
    try:
        link = loader._link(document, loader._makers("", "", Files(), PersonLimit(), time.monotonic), [])
    except MappingDocumentInvalid:
        return
    chain = Chain([link])
    explanation = chain.explain(people)
    try:
        user = chain.map(people)
    except MappingError as error:
        assert type(error) is type(explanation.error)
        return
    assert explanation.user == user
    assert usernames.problem(user.name) is None
    assert user.identity["status"] in {"used", "private"}
    outputs = [entry["output"] for entry in document.get("mappings", [])] or ["{name}"]
    assert any(possible(output).fullmatch(user.name) for output in outputs)


@settings(max_examples=600, deadline=None)
@given(
    pattern=PATTERN_TEXT,
    string=FIELD_TEXT.filter(lambda s: not re.search("[\ud800-\udfff]", s)),
    ignore_case=st.booleans(),
)
def test_the_fixed_ends_of_a_pattern_leave_out_nothing_that_matches(
    pattern: str, string: str, ignore_case: bool
) -> None:
    try:
        compiled = compile_pattern(pattern, ignore_case)
    except PatternInvalid:
        return
    if compiled.match(string) is None:
        return
    compared = fold(string) if ignore_case else string
    assert compared.startswith(compiled.prefix)
    assert compared.endswith(compiled.suffix)
    assert compiled.within in compared
    assert not compiled.exact or compared == compiled.prefix


@settings(max_examples=300, deadline=None)
@given(rules=st.lists(entries(), min_size=1, max_size=8), people=identities())
def test_the_index_changes_no_answer(rules: list[dict[str, Any]], people: Any) -> None:
    try:
        chain = Chain([ChainEntry(from_document(MappingDocument({"mappings": rules})))])
    except MappingDocumentInvalid:
        return
    explanation = chain.explain(people)
    try:
        assert chain.map(people) == explanation.user
    except MappingError as error:
        assert type(error) is type(explanation.error)


@settings(max_examples=300, deadline=None)
@given(content=JSON | st.lists(documents()))
def test_any_json_is_a_chain_or_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content))
    try:
        loader.load(path)
    except MappingFileInvalid as error:
        assert str(path) in str(error)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=60) | st.text(st.sampled_from('[]{}:,"-#&*!|> \n\ta1'), max_size=40).map(str.encode))
def test_any_bytes_are_a_chain_or_are_refused_by_name(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    try:
        loader.load(path)
    except MappingFileInvalid as error:
        assert str(path) in str(error)


@settings(max_examples=500, deadline=None)
@given(output=st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()) | st.lists(JSON).map(
    lambda entries: json.dumps({"DATA_TYPE": mapper.OUTPUT_TYPE, "result": entries}).encode()))  # fmt: skip
def test_any_output_of_a_callout_is_an_answer_or_a_failure(output: bytes) -> None:
    try:
        answers = mapper._parse(output, frozenset({"a", "b"}))
    except SourceUnavailable:
        return
    assert {key for key, _ in answers} <= {"a", "b"}


@settings(max_examples=500, deadline=None)
@given(value=st.text(max_size=30))
def test_an_escaped_value_stays_one_value(value: str) -> None:
    escaped = filter_values.escape(value.encode(errors="ignore").decode())
    assert escaped.isascii()
    assert not set(escaped) & set("()*\0&|!<>~\n")
    assert re.fullmatch(r"(?:[^\\]|\\[0-9a-f]{2})*", escaped)
    decoded = re.sub(rb"\\([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), escaped.encode())
    assert decoded.decode() == value.encode(errors="ignore").decode()

"""The reduced pattern language: its meaning, and its refusals."""

from __future__ import annotations

import time

import pytest

from identity.expression.pattern import PatternInvalid, compile_literal, compile_pattern


@pytest.mark.parametrize(
    ("pattern", "string", "groups"),
    [
        (r"(.*)@example\.edu", "alice@example.edu", ("alice",)),
        (r"(.*)@example\.edu", "alice@exampleXedu", None),
        (r"(.*)@example\.edu", "alice@example.edu\n", None),
        (r"(.*)@example\.edu", "\nalice@example.edu", None),
        (r"(.*)@example\.edu", "al\nice@example.edu", None),
        (r"(.*)@example\.edu", "alice@example.edu.evil.org", None),
        (r"(.*)@example.com", "bob@example.com", ("bob",)),
        (r"a|b", "a", ()),
        (r"a|b", "b", ()),
        (r"a|b", "ax", None),
        (r"a|b", "xb", None),
        (r"(alice|bob)@x", "bob@x", ("bob",)),
        (r"(a)|(b)", "b", ("", "b")),
        (r"ab?c", "ac", ()),
        (r"ab*c", "abbbc", ()),
        (r"(ab)*", "abab", ("ab",)),
        (r"((a)(b))", "ab", ("ab", "a", "b")),
        (r"a()b", "ab", ("",)),
        (r"\.\?\*\|\(\)\\", r".?*|()\\"[:-1], ()),
        ('\\"x\\"', '"x"', ()),
        (r"^a+[b]{1}$", "^a+[b]{1}$", ()),
        (r"^a+[b]{1}$", "ab", None),
        (r"\\d", r"\d", ()),
        (r"\\d", "5", None),
        (r"\\$", "\\$", ()),
        (r"\\$", "\\", None),
        ("[a-z].", "[a-z]x", ()),
        ("", "", ()),
        ("", "x", None),
        (".", "é", ()),
        (".", "\U0001f600", ()),
        ("a\0.", "a\0b", ()),
        ("#x .*", "#x y", ()),
    ],
)
def test_meaning(pattern: str, string: str, groups: tuple[str, ...] | None) -> None:
    assert compile_pattern(pattern, ignore_case=False).match(string) == groups


@pytest.mark.parametrize(
    "pattern",
    [r"\d", r"\1", r"\@", r"\$", r"\n", "a\\", "a*?", "a??", "a**", "a?*", "*a", "?a", "(*a)", "a|*", "(?:a)", "(?i)a",
     "(?P<n>a)", "(", ")", "(a", "a)", "a)(", "x" * 70_000],
)  # fmt: skip
def test_what_is_refused(pattern: str) -> None:
    with pytest.raises(PatternInvalid):
        compile_pattern(pattern, ignore_case=False)


@pytest.mark.parametrize(
    ("pattern", "string", "matches"),
    [
        ("alice@Example.edu", "ALICE@example.EDU", True),
        (".lice@Example.edu", "ALICE@example.EDU", True),
        ("k.", "Kx", True),
        ("k.", "\u212ax", False),
        ("k", "\u212a", False),
        ("s.", "\u017fx", False),
        ("s", "\u017f", False),
        ("i.", "\u0131x", False),
        ("i", "\u0130", False),
        ("\u00e9", "\u00c9", True),
        ("\u00e9.", "\u00c9x", True),
        ("\u00df.", "ssx", False),
        ("a[^]-.", "A[^]-x", True),
    ],
)
def test_ignore_case(pattern: str, string: str, matches: bool) -> None:
    assert (compile_pattern(pattern, ignore_case=True).match(string) is not None) == matches


def test_a_literal_is_only_itself() -> None:
    pattern = compile_literal(r"a.*(b)\1|", ignore_case=False)
    assert pattern.match(r"a.*(b)\1|") == ()
    assert pattern.match("axb") is None
    assert pattern.match("A.*(b)\\1|") is None
    assert compile_literal("Alice", ignore_case=True).match("aLICE") == ()


@pytest.mark.parametrize(
    ("pattern", "prefix", "suffix", "within"),
    [
        (r"(.*)@example\.edu", "", "@example.edu", "@example.edu"),
        ("alice@(.*)", "alice@", "", "alice@"),
        ("ab*c", "a", "c", "a"),
        ("ab?", "a", "", "a"),
        ("(a|b)c", "", "c", "c"),
        ("ab|cb", "", "", ""),
        ("a(b)", "a", "", "a"),
        ("abc", "abc", "abc", "abc"),
        (".*middle.*", "", "", "middle"),
        ("x.(long)*-middle-?(b)y", "x", "y", "-middle"),
        ("(abc)", "", "", ""),
        ("a.b", "a", "b", "a"),
    ],
)
def test_the_fixed_text_that_the_index_uses(pattern: str, prefix: str, suffix: str, within: str) -> None:
    compiled = compile_pattern(pattern, ignore_case=False)
    assert (compiled.prefix, compiled.suffix, compiled.within) == (prefix, suffix, within)


@pytest.mark.parametrize("pattern", ["(a*)*b", "((a*)*)*b", "(a|a)*b", "(a|a?)*b", "(.*)(.*)(.*)(.*)(.*)b"])
def test_no_pattern_takes_more_than_linear_time(pattern: str) -> None:
    compiled = compile_pattern(pattern, ignore_case=False)
    began = time.monotonic()
    assert compiled.match("a" * 100_000) is None
    assert time.monotonic() - began < 30


def test_a_list_of_thousands_of_people_in_one_pattern() -> None:
    people = [f"user{i:05}" for i in range(5500)]
    compiled = compile_pattern("(" + "|".join(people) + r")@example\.edu", ignore_case=True)
    assert compiled.match("user05499@example.edu") == ("user05499",)
    assert compiled.match("USER00000@EXAMPLE.edu") == ("USER00000",)
    assert compiled.match("user05500@example.edu") is None

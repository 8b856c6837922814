"""`allowed_domains` and `excluded_domains`: which identities of a person count for a mapping."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from identity.allowed_domains import AllowedDomains, domain_problem
from identity.errors import NoMapping
from identity.loader import load


def person(*usernames: str) -> list[dict[str, str]]:
    return [{"id": str(number), "username": name, "status": "used"} for number, name in enumerate(usernames)]


@pytest.mark.parametrize(
    ("allowed", "excluded", "username", "counts"),
    [
        ([], [], "a@x.org", True),
        (["x.org"], [], "a@x.org", True),
        (["X.org"], [], "a@x.ORG", True),
        (["x.org"], [], "a@y.x.org", False),
        (["x.org"], [], "a@notx.org", False),
        (["*.org"], [], "a@x.org", True),
        (["*.org"], [], "a@org", False),
        (["*.x.org"], [], "a@notx.org", False),
        ([], ["x.org"], "a@x.org", False),
        (["*.org"], ["x.org"], "a@x.org", False),
        (["x.org"], [], "x.org", True),
        (["x.org"], [], "a@x.org@y.org", False),
        (["x.org"], [], "", False),
    ],
)
def test_an_identity_counts_by_its_domain(allowed: list[str], excluded: list[str], username: str, counts: bool) -> None:
    assert (AllowedDomains(allowed, excluded).refusal({"username": username}) == "") is counts


@pytest.mark.parametrize("value", ["", "*", "*.", ".edu", "a b", "a@b", "ä.de", "x..y", "-x.org", "x" * 254])
def test_what_is_no_domain(value: str) -> None:
    assert domain_problem(value)


def test_the_chain_leaves_the_others_out_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "mapping.json"
    rule = {"source": "{username}", "match": "(.*)@.*", "output": "{0}"}
    file.write_text(json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [rule]}]))
    chain = load(file, domains=AllowedDomains(["*.edu"], ["bad.edu"]))
    both = person("mallory@bad.edu", "alice@x.edu", "bob@x.org")
    assert chain.map(both).name == "alice"
    assert [line.partition(": ")[2] for line in chain.explain(both).ignored] == [
        "excluded_domains has its domain bad.edu", "allowed_domains does not have its domain x.org"
    ]  # fmt: skip
    with pytest.raises(NoMapping):
        chain.map(person("bob@x.org"))

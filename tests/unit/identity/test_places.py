"""Mistakes and doubts of a mapping file: each with its file, line and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from identity import loader
from identity.errors import MappingFileInvalid
from identity.expression.mapper import doubt_of


def rule(**changes: Any) -> dict[str, Any]:
    return {"source": "{username}", "match": "(.*)@x\\.edu", "output": "{0}", **changes}


def file(tmp_path: Path, *rules: dict[str, Any], name: str = "mapping.json") -> Path:
    documents = [
        {"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [rule()]},
        {"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": list(rules)},
    ]
    path = tmp_path / name
    path.write_text(json.dumps(documents, indent=1))
    return path


def line(path: Path, text: str) -> int:
    return next(n for n, one in enumerate(path.read_text().splitlines(), 1) if text in one)


@pytest.mark.parametrize(
    ("changes", "at", "says"),
    [
        ({"match": "(?i)bad"}, "(?i)bad", "mappings[1].match: "),
        ({"output": "{7}"}, "{7}", "mappings[1].output: "),
        ({"surplus": 1}, "surplus", "mappings[1].surplus: unknown key"),
    ],
)
def test_a_mistake_in_a_rule(tmp_path: Path, changes: dict[str, Any], at: str, says: str) -> None:
    path = file(tmp_path, rule(), rule(**changes))
    with pytest.raises(MappingFileInvalid) as caught:
        loader.load(path)
    assert str(caught.value).startswith(f"{path}:{line(path, at)}: document 1: {says}")


@pytest.mark.parametrize(
    ("name", "text", "number"),
    [
        ("m.json", '[\n {"DATA_TYPE": "x",}\n]', 2),
        ("m.yaml", "- a: 1\n- b: [\n", 3),
        ("m.json", '[{"a": 1,\n"a": 2}]', 0),
    ],
)
def test_a_mistake_of_syntax(tmp_path: Path, name: str, text: str, number: int) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(MappingFileInvalid) as caught:
        loader.load(path)
    assert caught.value.line == number
    assert str(caught.value).startswith(f"{path}:{number}: " if number else f"{path}: ")


@pytest.mark.parametrize(
    ("match", "literal", "says"),
    [
        ("(.*)@example.edu", False, 'other domains match too; write "example\\\\\\\\.edu"'),
        ("(.*)@cs\\.example.edu", False, "cs\\\\\\\\.example"),
        ("(.*)@example\\.edu", False, ""),
        ("(.*)@(example\\.edu|x\\.org)", False, ""),
        ("alice@example.edu", True, ""),
        ("(.*)@.*", False, ""),
        ("(.*)@change-me\\.invalid", False, "placeholder"),
    ],
)
def test_what_is_odd(match: str, literal: bool, says: str) -> None:
    found = doubt_of(match, literal=literal)
    assert bool(found) == bool(says)
    assert says.replace("\\\\", "\\") in found


def test_a_doubt_has_its_place_and_stops_nothing(tmp_path: Path) -> None:
    path = file(tmp_path, rule(), rule(match="(.*)@example.edu"))
    (found,) = loader.load(path).doubts
    assert found.startswith(
        f"{path}:{line(path, '@example.edu')}: document 1: mappings[1].match: a dot in 'example.edu'"
    )

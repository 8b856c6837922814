"""Reading mapping files: valid forms, and that every mistake is named with file, index and reason."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

from identity import loader
from identity.errors import MappingFileInvalid
from identity.template import FIELDS
from mep_wire.identity import Identity

RULE = {"source": "{username}", "match": "(.*)@example\\.edu", "output": "{0}"}
DOCUMENT: dict[str, Any] = {"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [RULE]}
DOMAIN: dict[str, Any] = {"DATA_TYPE": "domain_identity_mapping#1.0.0", "domain": "example.edu"}
ALICE = {"id": "1", "username": "alice@example.edu", "status": "used"}


def write(tmp_path: pathlib.Path, content: Any, name: str = "identity_mapping.json") -> pathlib.Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_the_shipped_example_loads() -> None:
    example = pathlib.Path(__file__).parents[3] / "mep" / "config" / "defaults" / "identity_mapping.json"
    loader.load(example)


@pytest.mark.parametrize("content", [[DOCUMENT], DOCUMENT, [{"comment": "as Globus Compute's example", **DOCUMENT}]])
def test_lists_and_single_documents(tmp_path: pathlib.Path, content: Any) -> None:
    assert loader.load(write(tmp_path, content)).map([ALICE]).name == "alice"


def test_yaml(tmp_path: pathlib.Path) -> None:
    text = b"""
# people of the university
- DATA_TYPE: expression_identity_mapping#1.0.0
  mappings:
    - {source: "{username}", match: '(.*)@example\\.edu', output: "{0}", ignore_case: yes}
"""
    for name in ("identity_mapping.json", "identity_mapping.yaml"):
        assert loader.load(write(tmp_path, text, name)).map([ALICE]).name == "alice"


BAD_FILES = [
    (b"", "not a list"),
    (b"[]", "not a list"),
    (b"null", "not a list"),
    (b'"x"', "not a list"),
    (b"[{]", "not JSON"),
    (b'[{"a": 1, "a": 2}]', "a: given twice"),
    (b"- a: 1\n  a: 2\n", "a: given twice"),
    (b"\xff\xfe\x00", "not UTF-8 text"),
    (b"a: [", "neither JSON nor YAML"),
    (b"- !!python/object/apply:os.system [id]", "neither JSON nor YAML"),
    (b"[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("content", "reason"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_a_bad_file(tmp_path: pathlib.Path, content: bytes, reason: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(MappingFileInvalid, match=reason) as caught:
        loader.load(path)
    assert (caught.value.file, caught.value.index) == (path, None)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (7, "not a mapping"),
        ({}, "DATA_TYPE: missing"),
        ({"DATA_TYPE": "expression_identity_mapping"}, "'expression_identity_mapping' is unknown"),
        ({"DATA_TYPE": "expression_identity_mapping#2.0.0"}, "is unknown; known are expression_identity_mapping#1.0.0"),
        ({"DATA_TYPE": ["x"]}, "DATA_TYPE: not a text"),
        ({**DOCUMENT, "mapping": []}, "mapping: unknown key"),
        ({**DOCUMENT, "ambiguous": "last"}, "ambiguous: 'last' is none of refuse, first"),
        ({**DOCUMENT, "on_error": "ignore"}, "on_error"),
        ({**DOCUMENT, "mappings": []}, "mappings: not a list with something in it"),
        ({**DOCUMENT, "mappings": {}}, "mappings: not a list"),
        ({**DOCUMENT, "mappings": [RULE, {**RULE, "output": 7}]}, r"mappings\[1\]\.output: not a text"),
        ({**DOCUMENT, "mappings": [{"source": "x", "match": "x"}]}, r"mappings\[0\]\.output: missing"),
        ({**DOCUMENT, "mappings": [{**RULE, "ignorecase": True}]}, r"mappings\[0\]\.ignorecase: unknown key"),
        ({**DOCUMENT, "mappings": [{**RULE, "ignore_case": "true"}]}, "ignore_case: neither true nor false"),
        ({**DOCUMENT, "mappings": [{**RULE, "match": "*x"}]}, r"mappings\[0\]\.match: pattern '\*x'"),
        ({**DOCUMENT, "mappings": [{**RULE, "output": "{1}"}]}, r"mappings\[0\]\.output: \{1\} refers"),
        ({**DOCUMENT, "mappings": [{**RULE, "literal": True}]}, r"mappings\[0\]\.output: \{0\} refers"),
        ({**DOCUMENT, "mappings": [{**RULE, "source": "{0}"}]}, r"mappings\[0\]\.source"),
        ({**DOCUMENT, "mappings": [{**RULE, "source": "{}"}]}, r"mappings\[0\]\.source"),
        ({**DOCUMENT, "mappings": [{**RULE, "match": "\ud800"}]}, "not valid Unicode"),
        ({**DOMAIN, "domain": ""}, "domain"),
        ({**DOMAIN, "domain": []}, "domain"),
        ({**DOMAIN, "domain": "@example.edu"}, "is not a domain"),
        ({**DOMAIN, "domain": ["example.edu", 7]}, "domain"),
        ({**DOMAIN, "identity_provider": 7}, "identity_provider"),
        ({**DOMAIN, "identity_provider": ""}, "identity_provider: is empty"),
    ],
)
def test_a_bad_document(tmp_path: pathlib.Path, document: Any, reason: str) -> None:
    path = write(tmp_path, [DOMAIN, document])
    with pytest.raises(MappingFileInvalid, match=reason) as caught:
        loader.load(path)
    assert (caught.value.file, caught.value.index) == (path, 1)
    assert re.match(rf"{re.escape(str(path))}:[0-9]+: document 1: ", str(caught.value))


def laughs(levels: int, template: str) -> str:
    """Return YAML in which each of `levels` names the one before nine times."""
    lines = ["- &a0 {x: lol}"]
    lines.extend(f"- &a{level} " + template.format(", ".join([f"*a{level - 1}"] * 9)) for level in range(1, levels))
    return "\n".join(lines)


@pytest.mark.parametrize("template", ["[{0}]", "{{y: [{0}]}}", "{{<<: [{0}]}}"])
def test_aliases_that_multiply_are_refused_before_they_are_written_out(tmp_path: pathlib.Path, template: str) -> None:
    path = write(tmp_path, laughs(40, template).encode(), "identity_mapping.yaml")
    with pytest.raises(MappingFileInvalid, match="with its aliases written out"):
        loader.load(path)


@pytest.mark.parametrize("text", ["- &a [*a]", "- &a {x: *a}", "&a [[[*a]]]"])
def test_an_alias_within_itself_is_refused(tmp_path: pathlib.Path, text: str) -> None:
    with pytest.raises(MappingFileInvalid, match="an alias within what it stands for"):
        loader.load(write(tmp_path, text.encode(), "identity_mapping.yaml"))


@pytest.mark.parametrize("key", ["source", "output"])
def test_a_field_that_no_identity_has_is_warned_of(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    good = {"source": "{username}/{id}", "match": "(.*)", "output": "{0}{email}"}
    path = tmp_path / "m.json"
    for rule, warned in ((good, False), ({**good, key: "{usrname}"}, True)):
        caplog.clear()
        path.write_text(json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [good, rule]}]))
        loader.load(path)
        assert (f"mappings[1].{key}: no identity has a field 'usrname'" in caplog.text) is warned


def test_the_fields_are_those_that_the_relay_signs() -> None:
    assert frozenset(Identity.__struct_fields__) == FIELDS


def test_aliases_and_merged_mappings_are_fine(tmp_path: pathlib.Path) -> None:
    text = b"""
- &one {DATA_TYPE: domain_identity_mapping#1.0.0, domain: example.org}
- {<<: *one, domain: example.edu}
- *one
"""
    chain = loader.load(write(tmp_path, text, "identity_mapping.yaml"))
    assert len(chain.descriptions) == 3
    assert chain.map([ALICE]).name == "alice"


def test_a_file_that_is_not_there_or_not_a_file(tmp_path: pathlib.Path) -> None:
    for path, reason in ((tmp_path / "nothing", "No such file"), (tmp_path, "not a regular file")):
        with pytest.raises(MappingFileInvalid, match=reason):
            loader.load(path)


def test_ldap3_and_yaml_are_imported_only_where_they_are_used(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, [DOCUMENT, DOMAIN])
    program = f"""
import pathlib, sys
from identity import loader
loader.load(pathlib.Path({str(path)!r}))
print(sorted({{"ldap3", "yaml", "pyasn1", "ssl", "msgspec"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_documents_in_the_docs_load(tmp_path: pathlib.Path) -> None:
    page = (pathlib.Path(__file__).parents[3] / "docs" / "identity-mapping.md").read_text()
    blocks = [json.loads(block) for block in re.findall(r"^```json\n(\[.*?)^```", page, re.DOTALL | re.MULTILINE)]
    assert len(blocks) == 4, blocks
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text("secret\n")
    here = {"command": ["/bin/true"], "password_file": str(password)}
    for documents in blocks:
        for document in documents:
            document.pop("ca_file", None)
            document.update({key: value for key, value in here.items() if key in document})
        loader.load(write(tmp_path, documents))

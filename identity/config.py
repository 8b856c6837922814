"""Reads a mapping file: a list of documents in JSON (or YAML), each made into a mapper.

Called by the mapper process at its start and on reload, and by `mep map --check`. Trusts the file as far as the
site wrote it: it is checked to the last key all the same, so that a slip stops the load and not a person.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from identity import callout, domain, expression
from identity.chain import Chain, Link
from identity.document import Document, DocumentInvalid
from identity.errors import MappingFileInvalid
from identity.files import FileRefused, Files
from identity.mapper import Mapper

_LDAP_TYPE = "ldap_identity_mapping#1.0.0"
_Maker = Callable[[Document], Mapper]


def load(
    path: Path,
    *,
    connector: str = callout.POSIX_CONNECTOR,
    gateway: str = callout.NO_GATEWAY,
    files: Files | None = None,
) -> Chain:
    """Return the chain that the mapping file at `path` describes. Raises MappingFileInvalid.

    `connector` and `gateway` are what callouts get with -c and -s; an endpoint gives its own id as the gateway.
    `files`, where given, learns which files were read and what they were like, also where the load fails.
    """
    files = files or Files()
    makers = _makers(connector, gateway, files)
    links: list[Link] = []
    for index, value in enumerate(_documents(path, files)):
        try:
            links.append(_link(value, makers))
        except DocumentInvalid as error:
            raise MappingFileInvalid(path, index, str(error)) from None
    return Chain(links, [other for other in files.signatures if other != path])


def _link(value: Any, makers: dict[str, _Maker]) -> Link:
    document = Document(value)
    data_type = document.take_text("DATA_TYPE")
    maker = makers.get(data_type)
    if maker is None:
        raise DocumentInvalid(f"DATA_TYPE: {data_type!r} is unknown; known are {', '.join(makers)}")
    first = document.take_choice("ambiguous", ("refuse", "first"), "refuse") == "first"
    pass_on = document.take_choice("on_error", ("stop", "next"), "stop") == "next"
    mapper = maker(document)
    document.end()
    return Link(mapper, first, pass_on)


def _makers(connector: str, gateway: str, files: Files) -> dict[str, _Maker]:
    return {
        expression.DATA_TYPE: expression.from_document,
        callout.DATA_TYPE: lambda document: callout.from_document(document, connector, gateway),
        domain.DATA_TYPE: domain.from_document,
        _LDAP_TYPE: lambda document: _ldap(document, files),
    }


def _ldap(document: Document, files: Files) -> Mapper:
    from identity import ldap_document  # imports ldap3, only where a site has a directory

    return ldap_document.from_document(document, files)


def _documents(path: Path, files: Files) -> list[Any]:
    try:
        value = _parse(path, files.read(path))
    except (FileRefused, DocumentInvalid) as error:
        raise MappingFileInvalid(path, None, str(error)) from None
    documents = [value] if isinstance(value, dict) else value
    if not isinstance(documents, list) or not documents:
        raise MappingFileInvalid(path, None, "not a list of mapping documents with something in it")
    return documents


def _parse(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        if path.suffix not in {".yaml", ".yml"} and data.lstrip()[:1] in (b"[", b"{"):
            raise DocumentInvalid(f"not JSON: {error}") from None
    return _parse_yaml(data)


def _parse_yaml(data: bytes) -> Any:
    import yaml  # only where a site writes YAML

    try:
        _refuse_duplicates(yaml.compose(data, Loader=yaml.SafeLoader))
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DocumentInvalid(f"neither JSON nor YAML: {error}") from None


def _refuse_duplicates(node: Any) -> None:
    """Refuse a key given twice, which yaml would take the last of, as the JSON reader does."""
    if node is None or isinstance(node.value, str):
        return
    keys = [key.value for key, _ in node.value if isinstance(key.value, str)] if node.id == "mapping" else []
    for key in keys:
        if keys.count(key) > 1:
            raise DocumentInvalid(f"{key}: given twice in one mapping, line {node.start_mark.line + 1}")
    for child in node.value:
        for part in child if isinstance(child, tuple) else (child,):
            _refuse_duplicates(part)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DocumentInvalid(f"{next(key for key in keys if keys.count(key) > 1)}: given twice in one mapping")
    return value

"""Reads a mapping file: a list of documents in JSON (or YAML), each made into a mapper.

Called by the mapper process at its start and on reload, and by `mep map --check`. Trusts the file as far as the
site wrote it: it is checked to the last key all the same, so that a slip stops the load and not a person.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from identity import domain, expression
from identity.chain import Chain, Link
from identity.document import Document, DocumentInvalid
from identity.errors import MappingFileInvalid
from identity.mapper import Mapper

MAX_FILE_BYTES = 16 * 1024 * 1024
_Maker = Callable[[Document], Mapper]


def load(path: Path) -> Chain:
    """Return the chain that the mapping file at `path` describes. Raises MappingFileInvalid."""
    documents = _documents(path)
    links: list[Link] = []
    for index, value in enumerate(documents):
        try:
            links.append(_link(value))
        except DocumentInvalid as error:
            raise MappingFileInvalid(path, index, str(error)) from None
    return Chain(links)


def _link(value: Any) -> Link:
    document = Document(value)
    data_type = document.take_text("DATA_TYPE")
    maker = _makers().get(data_type)
    if maker is None:
        raise DocumentInvalid(f"DATA_TYPE: {data_type!r} is unknown; known are {', '.join(_makers())}")
    first = document.take_choice("ambiguous", ("refuse", "first"), "refuse") == "first"
    pass_on = document.take_choice("on_error", ("stop", "next"), "stop") == "next"
    mapper = maker(document)
    document.end()
    return Link(mapper, first, pass_on)


def _makers() -> dict[str, _Maker]:
    return {expression.DATA_TYPE: expression.from_document, domain.DATA_TYPE: domain.from_document}


def _documents(path: Path) -> list[Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise MappingFileInvalid(path, None, f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise MappingFileInvalid(path, None, f"larger than {MAX_FILE_BYTES} bytes")
    value = _parse(path, data)
    documents = [value] if isinstance(value, dict) else value
    if not isinstance(documents, list) or not documents:
        raise MappingFileInvalid(path, None, "not a list of mapping documents with something in it")
    return documents


def _parse(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data, object_pairs_hook=_no_duplicates)
    except DocumentInvalid as error:
        raise MappingFileInvalid(path, None, str(error)) from None
    except (ValueError, RecursionError) as error:
        if path.suffix not in {".yaml", ".yml"} and data.lstrip()[:1] in (b"[", b"{"):
            raise MappingFileInvalid(path, None, f"not JSON: {error}") from None
    return _parse_yaml(path, data)


def _parse_yaml(path: Path, data: bytes) -> Any:
    import yaml  # only where a site writes YAML

    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise MappingFileInvalid(path, None, f"neither JSON nor YAML: {error}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DocumentInvalid(f"{next(key for key in keys if keys.count(key) > 1)}: given twice in one mapping")
    return value

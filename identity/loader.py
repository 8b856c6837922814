"""Reads a mapping file: a list of documents in JSON (or YAML), each made into a mapper.

Called by the mapper process at its start and on reload, and by `mep map --check`. Trusts the file as far as the
site wrote it: it is checked to the last key all the same, so that a slip stops the load and not a person.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from identity import domain
from identity.allowed_domains import AllowedDomains
from identity.base import IdentityMapper
from identity.callout import mapper as callout
from identity.chain import ANY_DOMAIN, Chain, ChainEntry
from identity.concurrency_limits import PersonLimit
from identity.document import MappingDocument, MappingDocumentInvalid
from identity.errors import MappingFileInvalid
from identity.expression import mapper as expression
from identity.tracked_files import FileRefused, Files

_LDAP_TYPE = "ldap_identity_mapping#1.0.0"
_ACCOUNTS = "end_user_accounts"
_WILD = re.compile(r"\[!?.[^]]*\]|[*?]")
_KNOW_END_USERS = (expression.DATA_TYPE, callout.DATA_TYPE)
MAX_NODES = 1_000_000
"""Values that a YAML file may come to, its aliases written out."""
_Maker = Callable[[MappingDocument], IdentityMapper]


def load(
    path: Path,
    *,
    connector: str = callout.POSIX_CONNECTOR,
    gateway: str = callout.NO_GATEWAY,
    files: Files | None = None,
    person_limit: PersonLimit | None = None,
    clock: Callable[[], float] = time.monotonic,
    domains: AllowedDomains = ANY_DOMAIN,
) -> Chain:
    """Return the chain that the mapping file at `path` describes. Raises MappingFileInvalid.

    Callouts get `connector` and `gateway` with -c and -s; an endpoint gives its own id as the gateway.
    `files` decides which owners' files are trusted, and records the files read and their signatures, even if the load
    fails. `person_limit` counts look-ups in slow mappers, across the successive chains of one process. `clock`
    (seconds) times out directories' answers. Identities outside of `domains` don't count.
    """
    files = files or Files()
    makers = _makers(connector, gateway, files, person_limit or PersonLimit(), clock)
    links: list[ChainEntry] = []
    doubts: list[str] = []
    data = _read(path, files)
    documents = _documents(path, data, files)
    for index, value in enumerate(documents):
        odd: list[str] = []
        try:
            links.append(_link(value, makers, odd))
        except MappingDocumentInvalid as error:
            raise MappingFileInvalid(path, index, str(error), line_of(data, index, str(error))) from None
        doubts += [str(MappingFileInvalid(path, index, text, line_of(data, index, text))) for text in odd]
    types = {value["DATA_TYPE"] for value in documents}
    programs = callout.DATA_TYPE in types
    network = programs or _LDAP_TYPE in types
    return Chain(links, [other for other in files.signatures if other != path], network=network, programs=programs,
                 doubts=doubts, domains=domains)  # fmt: skip


def line_of(data: bytes, index: int, reason: str) -> int:
    """Return the line of the key that `reason` begins with, in document `index` of `data`; 0 if it can't be told."""
    import yaml  # reads JSON too, with line numbers

    try:
        node = yaml.compose(data, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return 0
    line = 0
    for step in (index, *_KEY_STEP.findall(reason.partition(": ")[0])):
        found = _child(node, step)
        if found is None:
            break
        line, node = found
    return line


_KEY_STEP = re.compile(r"[A-Za-z_]+|\[[0-9]+\]")


def _child(node: Any, step: int | str) -> tuple[int, Any] | None:
    """Return line and node of one element of a list, or of one key of a mapping."""
    number = step if isinstance(step, int) else int(step[1:-1]) if step.startswith("[") else None
    if node.id == "mapping" and number is None:
        return next(((key.start_mark.line + 1, value) for key, value in node.value if key.value == step), None)
    if node.id == "sequence" and number is not None and number < len(node.value):
        return node.value[number].start_mark.line + 1, node.value[number]
    return (node.start_mark.line + 1, node) if number == 0 and node.id == "mapping" else None


def needs(path: Path, files: Files) -> tuple[bool, bool]:
    """Return whether the mapping file needs the network, and whether it runs programs, by the types of its documents.

    The files that these name are not read. Raises MappingFileInvalid.
    """
    documents = [value for value in _documents(path, _read(path, files), files) if isinstance(value, dict)]
    types = [value.get("DATA_TYPE") for value in documents]
    programs = callout.DATA_TYPE in types
    return programs or _LDAP_TYPE in types, programs


def _link(value: Any, makers: dict[str, _Maker], doubts: list[str]) -> ChainEntry:
    document = MappingDocument(value, doubts=doubts)
    data_type = document.take_text("DATA_TYPE")
    maker = makers.get(data_type)
    if maker is None:
        raise MappingDocumentInvalid(f"DATA_TYPE: {data_type!r} is unknown; known are {', '.join(makers)}")
    first = document.take_choice("ambiguous", ("refuse", "first"), "refuse") == "first"
    pass_on = document.take_choice("on_error", ("stop", "next"), "stop") == "next"
    accounts = document.take_texts(_ACCOUNTS) if data_type in _KNOW_END_USERS and document.has(_ACCOUNTS) else []
    for number, pattern in enumerate(accounts):
        if not _WILD.sub("", pattern):
            everyone = f"{pattern!r} fits every account of this host, people's too: name those of gateways, like 'gw-*'"
            document.doubt(f"{_ACCOUNTS}[{number}]", everyone)
    mapper = maker(document)
    document.end()
    if isinstance(mapper, expression.ExpressionMapper) and mapper.asks_end_user != bool(accounts):
        missing = "missing, and a rule has end_user" if mapper.asks_end_user else "no rule has end_user"
        raise document.refuse(_ACCOUNTS, missing)
    return ChainEntry(mapper, first, pass_on, tuple(accounts))


def _makers(
    connector: str, gateway: str, files: Files, person_limit: PersonLimit, clock: Callable[[], float]
) -> dict[str, _Maker]:
    return {
        expression.DATA_TYPE: expression.from_document,
        callout.DATA_TYPE: lambda document: callout.from_document(document, connector, gateway, files, person_limit),
        domain.DATA_TYPE: domain.from_document,
        _LDAP_TYPE: lambda document: _ldap(document, files, person_limit, clock),
    }


def _ldap(
    document: MappingDocument, files: Files, person_limit: PersonLimit, clock: Callable[[], float]
) -> IdentityMapper:
    from identity.ldap import document as ldap_document  # imports ldap3, only where a site has a directory

    return ldap_document.from_document(document, files, person_limit, clock)


def _read(path: Path, files: Files) -> bytes:
    try:
        return files.read_mapping(path)
    except FileRefused as error:
        raise MappingFileInvalid(path, None, str(error)) from None


def _documents(path: Path, data: bytes, files: Files) -> list[Any]:
    try:
        value = _parse(path, data, files)
    except MappingDocumentInvalid as error:
        raise MappingFileInvalid(path, None, str(error), error.line) from None
    documents = [value] if isinstance(value, dict) else value
    if not isinstance(documents, list) or not documents:
        raise MappingFileInvalid(path, None, "not a list of mapping documents with something in it")
    return documents


def _parse(path: Path, data: bytes, files: Files) -> Any:
    try:
        data.decode("utf-8")  # json and yaml would take UTF-16 too, which no other file of an endpoint may be
    except UnicodeDecodeError as error:
        raise MappingDocumentInvalid(f"not UTF-8 text (byte {error.start}): save it as UTF-8", 0) from None
    try:
        return json.loads(data, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        if path.suffix not in {".yaml", ".yml"} and data.lstrip()[:1] in (b"[", b"{"):
            raise MappingDocumentInvalid(f"not JSON: {error}", getattr(error, "lineno", 0)) from None
    files.cut_unseen = True  # the beginning of a YAML file mostly is a YAML file
    return _parse_yaml(data)


def _parse_yaml(data: bytes) -> Any:
    import yaml  # only where a site writes YAML

    try:
        _check_node(yaml.compose(data, Loader=yaml.SafeLoader), {})
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise MappingDocumentInvalid(f"neither JSON nor YAML: {error}", mark.line + 1 if mark else 0) from None


def _check_node(node: Any, sizes: dict[int, int]) -> int:
    """Return the number of nodes in `node` with its aliases expanded; each node is visited once.

    Refuses more nodes than MAX_NODES, an alias within its own anchor, and a key given twice in one mapping (yaml
    would use the last one).
    """
    if node is None or isinstance(node.value, str):
        return 1
    if (known := sizes.get(id(node))) is not None:
        if not known:
            raise MappingDocumentInvalid(f"line {node.start_mark.line + 1}: an alias within what it stands for")
        return known
    sizes[id(node)] = 0
    if node.id == "mapping":
        _refuse_twice([key for key, _ in node.value], node)
    size = 1
    for child in node.value:
        for part in child if isinstance(child, tuple) else (child,):
            size += _check_node(part, sizes)
            if size > MAX_NODES:
                raise MappingDocumentInvalid(f"more than {MAX_NODES} values, with its aliases written out")
    sizes[id(node)] = size
    return size


def _refuse_twice(keys: list[Any], node: Any) -> None:
    seen = set()
    for key in keys:
        if isinstance(key.value, str) and key.value in seen:
            raise MappingDocumentInvalid(f"{key.value}: given twice in one mapping, line {node.start_mark.line + 1}")
        if isinstance(key.value, str):
            seen.add(key.value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise MappingDocumentInvalid(f"{twice}: given twice in one mapping")
    return value

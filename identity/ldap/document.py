"""Makes an `ldap_identity_mapping#1.0.0` document into an LdapMapper, checking everything that needs no network."""

from __future__ import annotations

import codecs
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from ldap3.core.exceptions import LDAPException
from ldap3.operation.search import parse_filter
from ldap3.utils.dn import parse_dn

from identity.answer_cache import AnswerCache
from identity.concurrency_limits import ConcurrencyLimit, PersonLimit
from identity.document import MappingDocument
from identity.ldap.directory import Access, Directory, DirectoryServer
from identity.ldap.mapper import LdapMapper, Lookup
from identity.template import Template, TemplateInvalid
from identity.tracked_files import FileRefused, Files

_URI = re.compile(r"(ldaps?)://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?/?")
_LDAPI = re.compile(r"ldapi://(%2[fF][A-Za-z0-9%._~-]+)/?")
_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


def from_document(
    document: MappingDocument, files: Files, person_limit: PersonLimit, clock: Callable[[], float]
) -> LdapMapper:
    """Return the mapper for `document`. Raises DocumentInvalid."""
    access = _access(document, files)
    lookup = _lookup(document)
    limit = ConcurrencyLimit(int(document.take_number("max_connections", 8, 1, 100)), person_limit)
    cache: AnswerCache[str] = AnswerCache(
        document.take_number("cache_s", 300, 0, 86400),
        document.take_number("negative_cache_s", 30, 0, 86400),
        clock,
    )
    description = f"LDAP mapping by {', '.join(map(str, access.servers))}, base {lookup.base}"
    return LdapMapper(Directory(access, limit, clock), lookup, cache, description)


def _access(document: MappingDocument, files: Files) -> Access:
    servers = [_server(document, uri) for uri in document.take_texts("servers")]
    start_tls = document.take_flag("start_tls", True)
    bind_dn, password, external = _credentials(document, files)
    encrypted = start_tls or all(server.scheme != "ldap" for server in servers)
    if password and not encrypted:
        raise document.refuse("start_tls", "a password must not be sent unencrypted: use StartTLS or ldaps://")
    return Access(
        servers=servers,
        tls=_tls(document, files),
        start_tls=start_tls,
        bind_dn=bind_dn,
        password=password,
        sasl_external=external,
        connect_timeout_s=int(document.take_number("connect_timeout_s", 3, 1, 60)),
        operation_timeout_s=int(document.take_number("operation_timeout_s", 5, 1, 60)),
        person_timeout_s=document.take_number("timeout_s", 15, 1, 300),
        ignore_references=document.take_choice("references", ("fail", "ignore"), "fail") == "ignore",
    )


def _server(document: MappingDocument, uri: str) -> DirectoryServer:
    if (found := _URI.fullmatch(uri)) is not None:
        scheme, host, port = found.groups()
        number = int(port) if port else {"ldap": 389, "ldaps": 636}[scheme]
        if 0 < number < 65536:
            return DirectoryServer(scheme, host.strip("[]"), number)
    elif (found := _LDAPI.fullmatch(uri)) is not None:
        return DirectoryServer("ldapi", unquote(found[1]), 0)
    raise document.refuse("servers", f"{uri!r} is not ldap://HOST[:PORT], ldaps://HOST[:PORT] or ldapi://%2FPATH")


def _credentials(document: MappingDocument, files: Files) -> tuple[str, str, bool]:
    external = document.take_choice("sasl", ("none", "external"), "none") == "external"
    if not document.has("bind_dn") and not document.has("password_file"):
        return "", "", external
    if external:
        raise document.refuse("sasl", "external goes without bind_dn and password_file")
    bind_dn = _dn(document, "bind_dn")
    data = _read(document, "password_file", files, secret=True)
    try:
        password = data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise document.refuse("password_file", "not UTF-8 text") from None
    if not password or not password.isprintable():
        raise document.refuse("password_file", "is empty, or has more than one line")
    return bind_dn, password, external


def _read(document: MappingDocument, key: str, files: Files, *, secret: bool = False) -> bytes:
    try:
        return files.read(_path(document, key), secret=secret)
    except FileRefused as error:
        raise document.refuse(key, error) from None


def _path(document: MappingDocument, key: str) -> Path:
    path = Path(document.take_text(key))
    if not path.is_absolute():
        raise document.refuse(key, f"{str(path)!r} is not an absolute path")
    return path


def _tls(document: MappingDocument, files: Files) -> ssl.SSLContext:
    verify = document.take_flag("verify_certificate", True)
    try:
        if document.has("ca_file"):
            authorities = _read(document, "ca_file", files).removeprefix(codecs.BOM_UTF8).decode("ascii", "replace")
            context = ssl.create_default_context(cadata=authorities)
        else:
            context = ssl.create_default_context()
    except (ssl.SSLError, ValueError) as error:
        raise document.refuse("ca_file", f"not a PEM file of certificates: {error}") from None
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if document.has("client_certificate_file"):
        _load_client_certificate(document, files, context)
    return context


def _load_client_certificate(document: MappingDocument, files: Files, context: ssl.SSLContext) -> None:
    paths = {}
    for key, secret in (("client_certificate_file", False), ("client_key_file", True)):
        paths[key] = _path(document, key)
        try:
            files.read(paths[key], secret=secret)
        except FileRefused as error:
            raise document.refuse(key, error) from None
    try:
        context.load_cert_chain(paths["client_certificate_file"], paths["client_key_file"])
    except (ssl.SSLError, OSError) as error:
        raise document.refuse("client_certificate_file", error) from None


def _lookup(document: MappingDocument) -> Lookup:
    return Lookup(
        base=_dn(document, "base"),
        scope=document.take_choice("scope", ("sub", "one", "base"), "sub"),
        filter=_filter(document),
        attribute=_attribute(document),
        required_group=_dn(document, "required_group") if document.has("required_group") else "",
        group_attribute=document.take_choice("group_attribute", ("member", "uniqueMember", "memberUid"), "member"),
    )


def _dn(document: MappingDocument, key: str) -> str:
    text = document.take_text(key)
    try:
        parts = parse_dn(text)
    except (LDAPException, ValueError, IndexError) as error:
        raise document.refuse(key, f"{text!r} is not a distinguished name: {error}") from None
    if not parts:
        raise document.refuse(key, "is empty")
    return text


def _attribute(document: MappingDocument) -> str:
    text = document.take_text("attribute", "uid")
    if _ATTRIBUTE.fullmatch(text) is None:
        raise document.refuse("attribute", f"{text!r} is not the name of an attribute")
    return text


def _filter(document: MappingDocument) -> Template:
    text = document.take_text("filter")
    try:
        template = Template(text)
        parse_filter(template.fill(dict.fromkeys(template.fields, "x")), None, False, False, None, False)
    except (TemplateInvalid, LDAPException, ValueError, IndexError) as error:
        raise document.refuse("filter", f"{text!r}: {error}") from None
    if not template.fields:
        raise document.refuse("filter", "uses no field of the identity, such as {username}: it would find anybody")
    _check_positions(document, text, template)
    document.doubt("filter", template.doubt)
    return template


def _check_positions(document: MappingDocument, text: str, template: Template) -> None:
    """Refuse a field anywhere but in a value, the only position in which escaping keeps an identity within bounds."""
    pieces = template.fill(dict.fromkeys(template.fields, "\0")).split("\0")
    before = ""
    for piece in pieces[:-1]:
        before += piece
        item = before.rpartition("(")[2]
        if "=" not in item or ")" in item or "\\" in item[-2:]:
            raise document.refuse("filter", f"{text!r}: a field of the identity may stand only in a value, after the =")

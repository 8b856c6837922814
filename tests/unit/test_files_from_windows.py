"""A byte order mark and CRLF: accepted in every file that people write, or refused by name where a program can't."""

from __future__ import annotations

import codecs
import datetime
import json
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from identity import loader
from identity.document import MappingDocument
from identity.errors import MappingFileInvalid
from identity.ldap import document as ldap_document
from identity.tracked_files import Files
from mep.boundary.errors import ConfigRefused
from mep.boundary.file_trust import ours
from mep.cli.common import read_token
from mep.cli.exit_codes import CliFailed
from mep.config.parser import read_document
from mep.config.template_bundle import read_environment, read_schema, read_templates
from mep.config.template_files import read_trusted
from mep_sdk import connection
from mep_sdk.settings import find_settings
from user_endpoint.render.sandbox import PieceEnvironment
from user_endpoint.render.yaml_document import document_from

ME = os.geteuid()
URL = "https://relay.example.org"
RULES = {"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [{"source": "{username}", "match": "(.*)",
                                                                        "output": "{0}"}]}  # fmt: skip


Write = Callable[[str, str], Path]


@pytest.fixture(params=["mark", "crlf", "both"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    """A function that writes a text as Windows programs do, and returns the file's path."""

    def write(name: str, text: str) -> Path:
        data = text.encode()
        if request.param != "mark":
            data = data.replace(b"\n", b"\r\n")
        if request.param != "crlf":
            data = codecs.BOM_UTF8 + data
        path = tmp_path / name
        path.touch(mode=0o600)
        path.write_bytes(data)
        return path

    return write


def test_the_five_files(written: Write, tmp_path: Path) -> None:
    config = written("config.yaml", "display_name: Site\nmulti_user: true\n")
    assert read_document(read_trusted(config, cap=1000, owner=ME), "x").options.display_name == "Site"
    schema = written("schema.json", '{\n"type": "object"\n}\n')
    assert read_schema(schema, required=True, owner=ME) == {"type": "object"}
    assert read_environment(written("user_environment.yaml", "A: b\nC: d\n"), ME) == {"A": "b", "C": "d"}
    written("part.j2", "setup: |\n  one\n  two\n")
    template = written("t.yaml.j2", "engine: x\n{% include 'part.j2' %}\n")
    rendered = PieceEnvironment(read_templates(template, tmp_path, ME)).get_template(template.name).render()
    assert document_from(rendered).data == {"engine": "x", "setup": "one\ntwo"}
    loader.load(written("mapping.json", json.dumps([RULES], indent=1)))


def test_mapping_in_yaml(written: Write) -> None:
    loader.load(written("mapping.yaml", f"- {json.dumps(RULES)}\n"))


def test_token_files(written: Write) -> None:
    assert read_token(str(written("token", "mep_secret\n"))) == "mep_secret"
    for content, said in (("\n", "token is empty"), ("mep_a mep_b\n", "token holds more than an access token")):
        with pytest.raises(CliFailed, match=said):
            read_token(str(written("token", content)))
    file = written("client.toml", f'relay_url = "{URL}"\ntoken = "secret"\n')
    assert find_settings(environ={}, file=file).token == "secret"


def test_tokens_from_files_in_the_environment(written: Write) -> None:
    text = written("token", "mep_secret\n").read_bytes().decode()
    env = {"MEP_RELAY_URL": f"{URL}\r\n", "MEP_TOKEN": text}
    found = find_settings(environ=env, file=Path("/nowhere"))
    assert (found.relay_url, found.token) == (URL, "mep_secret")
    assert find_settings(URL, text, environ={}, file=Path("/nowhere")).token == "mep_secret"


def certificate() -> str:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "t")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now).not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_ca_bundles_of_the_sdk(written: Write, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """OpenSSL reads these files itself."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    before = len(ssl.create_default_context().get_ca_certs())
    path = written("ca.pem", certificate() + certificate())
    monkeypatch.setenv(variable, str(path))
    found = len(connection.tls_context().get_ca_certs())
    assert found in {2, before + 2}


def test_files_that_a_directory_names(written: Write, tmp_path: Path) -> None:
    password = written("password", "secret\n")
    document = MappingDocument({"bind_dn": "cn=x", "password_file": str(password)})
    assert ldap_document._credentials(document, Files()) == ("cn=x", "secret", False)
    context = ldap_document._tls(MappingDocument({"ca_file": str(written("ca.pem", certificate()))}), Files())
    assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [(codecs.BOM_UTF8 + b"#!/bin/sh\n", "byte order mark"), (b"#!/bin/sh\r\nexit 0\r\n", "CRLF")],
)
def test_a_program_that_no_kernel_starts_is_refused_by_name(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "hook"
    path.touch(mode=0o755)
    path.write_bytes(data)
    with pytest.raises(OSError, match=says):
        ours().open_program(path)


@pytest.mark.parametrize("name", ["mapping.json", "mapping.yaml", "config.yaml"])
def test_utf_16_is_refused_in_every_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.touch(mode=0o600)
    file.write_bytes(json.dumps([RULES]).encode("utf-16"))
    with pytest.raises((ConfigRefused, MappingFileInvalid), match="save it as UTF-8"):
        if name == "config.yaml":
            read_trusted(file, cap=10_000, owner=ME)
        else:
            loader.load(file)

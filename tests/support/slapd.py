"""A real OpenLDAP server for tests: its own directory, a free port on 127.0.0.1, a test CA, and an end.

Listens on ldap:// (StartTLS), ldaps:// and ldapi://. Everything it writes is below the directory it is given.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import pathlib
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.waiting import until

SUFFIX = "dc=example,dc=edu"
READER, READER_PASSWORD = f"cn=reader,{SUFFIX}", "correct horse"
CLIENT_DN = "cn=mapper,o=test"
_SLAPD, _SLAPADD = "/usr/sbin/slapd", "/usr/sbin/slapadd"
_START_S = 10.0


class Authority:
    """A certificate authority. `file` is its certificate in PEM."""

    def __init__(self, directory: pathlib.Path, name: str = "ca") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test {name}")])
        certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, hosts: tuple[str, ...] = ()) -> tuple[pathlib.Path, pathlib.Path]:
        """Return the files of a new certificate for `hosts` (names and addresses), and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "test"),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        builder = _builder(subject, self._name, key.public_key())
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general(h) for h in hosts]), critical=False)
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = builder.add_extension(issuer_key, critical=False).sign(self._key, hashes.SHA256())
        files = self._directory / f"{name}.crt", self._directory / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].touch(mode=0o600)
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def _general(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(host)


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_CONFIG = """
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/nis.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {directory}/slapd.pid
TLSCACertificateFile {ca}
TLSCertificateFile {certificate}
TLSCertificateKeyFile {key}
TLSVerifyClient try
database mdb
maxsize 16777216
suffix "{suffix}"
directory {directory}/db
dbnosync
access to dn.subtree="ou=closed,{suffix}"
  by dn.exact="{reader}" read
  by dn.exact="{client}" read
  by dn.regex="uidNumber=.*,cn=peercred,cn=external,cn=auth" read
  by * none
access to attrs=userPassword by anonymous auth by * none
access to * by * read
"""


@dataclass
class Slapd:
    """One server. `start` and `stop` may be repeated; the port stays. A context manager, stopped at the end."""

    directory: pathlib.Path
    ldif: str
    authority: Authority
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    port: int = field(default_factory=free_port)
    tls_port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        (self.directory / "db").mkdir(parents=True)
        certificate, key = self.authority.issue(f"server-{self.port}", hosts=self.hosts)
        self._config = self.directory / "slapd.conf"
        self._config.write_text(
            _CONFIG.format(
                directory=self.directory, ca=self.authority.file, certificate=certificate, key=key,
                suffix=SUFFIX, reader=READER, client=CLIENT_DN,
            )
        )  # fmt: skip
        subprocess.run(
            [_SLAPADD, "-f", str(self._config), "-q"], input=self.ldif.encode(), check=True, capture_output=True
        )

    @property
    def ldap(self) -> str:
        """The URI for StartTLS or plain text."""
        return f"ldap://localhost:{self.port}"

    @property
    def ldaps(self) -> str:
        """The URI for TLS from the first byte."""
        return f"ldaps://localhost:{self.tls_port}"

    @property
    def ldapi(self) -> str:
        """The URI of the local socket."""
        return "ldapi://" + quote(str(self.directory / "ldapi"), safe="")

    def start(self) -> None:
        """Start it and wait until it answers."""
        uris = f"ldap://127.0.0.1:{self.port} ldaps://127.0.0.1:{self.tls_port} {self.ldapi}"
        log = (self.directory / "slapd.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [_SLAPD, "-d", "0", "-f", str(self._config), "-h", uris],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until("slapd", self._listens, _START_S, details=(self.directory / "slapd.log").read_text)

    def _listens(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"slapd did not start: {(self.directory / 'slapd.log').read_text()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.tls_port), timeout=1):
            return True
        return False

    def stop(self) -> None:
        """End it at once, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Make it stop answering; connections to it stay open."""
        assert self._process
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # until then one of its threads may still answer

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process
        os.kill(self._process.pid, signal.SIGCONT)

    def modify(self, ldif: str) -> None:
        """Change the directory's content while the server runs, as its administrator."""
        self.stop()
        subprocess.run([_SLAPADD, "-f", str(self._config), "-q"], input=ldif.encode(), check=True, capture_output=True)
        self.start()

    def change(self, ldif: str) -> None:
        """Change entries that are there, by LDIF change records, as `modify` adds new ones."""
        self.stop()
        subprocess.run(
            ["/usr/sbin/slapmodify", "-f", str(self._config), "-q"],
            input=ldif.encode(),
            check=True,
            capture_output=True,
        )
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def person(name: str, mail: str, unit: str = "people", uids: tuple[str, ...] | None = None) -> str:
    """Return the LDIF of one person, called `name` in the directory, with `uids` (their name by default)."""
    lines = [f"dn: cn={name},ou={unit},{SUFFIX}", "objectClass: inetOrgPerson", f"cn: {name}", f"sn: {name}"]
    lines += [f"mail: {mail}", *(f"uid: {uid}" for uid in ((name,) if uids is None else uids))]
    return "\n".join(lines) + "\n\n"


def tree() -> str:
    """Return the LDIF of the units, and of the account that may read ou=closed."""
    top = f"dn: {SUFFIX}\nobjectClass: dcObject\nobjectClass: organization\no: Example\ndc: example\n\n"
    units = [
        f"dn: ou={u},{SUFFIX}\nobjectClass: organizationalUnit\nou: {u}\n\n"
        for u in ("people", "closed", "groups", "partial")
    ]
    reader = (
        f"dn: {READER}\nobjectClass: organizationalRole\nobjectClass: simpleSecurityObject\ncn: reader\n"
        f"userPassword: {READER_PASSWORD}\n\n"
    )
    return top + "".join(units) + reader


def referral(name: str, uri: str, unit: str = "people") -> str:
    """Return the LDIF of an entry that says that its part of the directory is elsewhere."""
    lines = [f"dn: cn={name},ou={unit},{SUFFIX}", "objectClass: referral", "objectClass: extensibleObject"]
    return "\n".join([*lines, f"cn: {name}", f"ref: {uri}/cn={name},ou={unit},{SUFFIX}"]) + "\n\n"


def group(name: str, members: tuple[str, ...] = (), member_uids: tuple[str, ...] = ()) -> str:
    """Return the LDIF of a groupOfNames of people's names, or of a posixGroup of user names."""
    lines = [f"dn: cn={name},ou=groups,{SUFFIX}", f"cn: {name}"]
    if members:
        lines += ["objectClass: groupOfNames", *(f"member: cn={member},ou=people,{SUFFIX}" for member in members)]
    else:
        lines += ["objectClass: posixGroup", "gidNumber: 5000", *(f"memberUid: {uid}" for uid in member_uids)]
    return "\n".join(lines) + "\n\n"

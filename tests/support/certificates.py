"""Certificate authorities and certificates for tests of TLS."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _alternative(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)


class Authority:
    """One authority; `path` is its certificate's file."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory, self._name, self._serial = directory, name, 1
        self._key = ec.generate_private_key(ec.SECP256R1())
        extension = x509.BasicConstraints(ca=True, path_length=None)
        made = self._builder(_name(name), self._key).add_extension(extension, critical=True)
        self.path = directory / f"{name}.pem"
        self.path.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now, hour = datetime.datetime.now(datetime.UTC), datetime.timedelta(hours=1)
        self._serial += 1
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(_name(self._name))
        builder = builder.public_key(key.public_key()).serial_number(self._serial)
        return builder.not_valid_before(now - hour).not_valid_after(now + hour)

    def server(self, *names: str) -> ssl.SSLContext:
        """Return the server's side of a certificate for these names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName([_alternative(each) for each in names])
        made = self._builder(_name(names[0]), key).add_extension(alternatives, critical=False)
        path = self._directory / f"{self._name}-{self._serial}.pem"
        plain = serialization.NoEncryption()
        path.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
            + made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

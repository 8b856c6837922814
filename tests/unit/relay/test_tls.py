"""The relay's certificate: what is said of files that cannot be used, and of a date that no client accepts."""

from __future__ import annotations

import datetime
import logging
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from relay.settings import ConfigRefused
from relay.tls import Certificate

DAY = datetime.timedelta(days=1)


def pair(directory: Path, begins: datetime.timedelta, ends: datetime.timedelta) -> tuple[str, str]:
    """Write a certificate that is valid between these times from now, and its key; return the files."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "relay")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now + begins).not_valid_after(now + ends)
    made = builder.sign(key, hashes.SHA256())
    files = directory / "chain.pem", directory / "key.pem"
    plain = serialization.NoEncryption()
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    files[1].chmod(0o600)
    return str(files[0]), str(files[1])


@pytest.mark.parametrize(
    ("begins", "ends", "warned"), [(-DAY, DAY, False), (-2 * DAY, -DAY, True), (DAY, 2 * DAY, True)]
)
def test_a_date_that_no_client_accepts_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
    begins: datetime.timedelta, ends: datetime.timedelta, warned: bool,
) -> None:  # fmt: skip
    chain, key = pair(tmp_path, begins, ends)
    with caplog.at_level(logging.WARNING):
        certificate = Certificate(chain, key)
        assert ("no client accepts the certificate today" in caplog.text) is warned
        caplog.clear()
        certificate.reload()
        assert ("no client accepts the certificate today" in caplog.text) is warned


def test_the_file_that_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    chain, key = pair(tmp_path, -DAY, DAY)
    with pytest.raises(ConfigRefused, match=r"tls_certificate \S+/nosuch.pem: No such file or directory$"):
        Certificate(f"{tmp_path}/nosuch.pem", key)
    with pytest.raises(ConfigRefused, match=f"tls_certificate {key}: it is no certificate in PEM"):
        Certificate(key, key)
    assert Certificate(chain, key)

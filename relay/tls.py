"""The relay's own TLS: a certificate that can be read again while it serves.

New connections use the new certificate, open ones go on. A file that can't be used leaves the one before in force.
Called by the server.
"""

from __future__ import annotations

import datetime
import os
import ssl
import tempfile
from pathlib import Path

from cryptography import x509

from relay.log import logger
from relay.settings import CREDENTIAL, ConfigRefused, secret


class Certificate:
    """A certificate chain and its key, from two files in PEM."""

    def __init__(self, chain: str, key: str) -> None:
        """Read the files. Raises ConfigRefused."""
        self._chain, self._key = chain, key
        self.context = self._read()

    def reload(self) -> None:
        """Read the files again. Raises ConfigRefused; then nothing has changed."""
        self._read()
        self._load(self.context)

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        key = secret("tls_key", self._key)  # it is checked: no other account may read or exchange it
        self._check_dates()
        try:
            if self._key.startswith(CREDENTIAL):
                path = Path(os.environ["CREDENTIALS_DIRECTORY"], self._key.removeprefix(CREDENTIAL))
                context.load_cert_chain(self._chain, path, password=_no_password)
            else:
                with tempfile.NamedTemporaryFile() as same:  # the bytes that were checked are used
                    same.write(key)
                    same.flush()
                    context.load_cert_chain(self._chain, same.name, password=_no_password)
        except (OSError, ssl.SSLError) as error:
            raise ConfigRefused(f"tls_certificate {self._chain}, tls_key {self._key}: {error}") from error

    def _check_dates(self) -> None:
        """Warn of a certificate that no client accepts today. Raises ConfigRefused for a file that can't be read."""
        try:
            (leaf, *_) = x509.load_pem_x509_certificates(Path(self._chain).read_bytes())
        except OSError as error:
            raise ConfigRefused(f"tls_certificate {self._chain}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigRefused(f"tls_certificate {self._chain}: it is no certificate in PEM") from error
        now = datetime.datetime.now(datetime.UTC)
        if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
            logger.warning(
                "no client accepts the certificate today: renew it, or correct this host's clock; SIGHUP reads it",
                file=self._chain, valid_from=leaf.not_valid_before_utc.isoformat(),
                valid_until=leaf.not_valid_after_utc.isoformat(),
            )  # fmt: skip


def _no_password() -> str:
    """OpenSSL would ask the terminal."""
    raise ssl.SSLError("the key is protected by a password")

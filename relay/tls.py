"""The relay's own TLS: a certificate that can be read again while it serves.

New connections use the new certificate, open ones go on. A file that can't be used leaves the one before in force.
Called by the server.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from pathlib import Path

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


def _no_password() -> str:
    """OpenSSL would ask the terminal."""
    raise ssl.SSLError("the key is protected by a password")

"""One key pair, made or read by a child that runs as the account that owns it.

The child writes the 32 bytes of a new secret key to a descriptor, or reads an existing key from it. It returns the
public key in the form that the relay's API takes. No secret reaches root. Run by mep/cli/registration.py.
"""

from __future__ import annotations

import enum
import os
import pwd
import re
import socket
from functools import partial
from pathlib import Path

from mep.cli.exit_codes import CliFailed
from mep.cli.unprivileged_child import UnprivilegedChild

SECRET_BYTES = 32


class KeyKind(enum.Enum):
    """Which key; the value is the form of its public key."""

    LINK = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
    """CURVE, in Z85."""
    UNSEAL = re.compile(r"[0-9a-f]{64}")
    """X25519, in hexadecimal digits."""


def key_pair(kind: KeyKind, path: Path, descriptor: int, account: pwd.struct_passwd | None, *, existing: bool) -> str:
    """Return the public key to the secret in `descriptor`, which is open on `path`. Raises CliFailed."""
    with UnprivilegedChild(partial(_work, kind, descriptor, existing), account, keep=[descriptor]) as child:
        said = child.receive(64)
    public = said.decode("ascii", "replace")
    if not kind.value.fullmatch(public):
        what = "read" if existing else "made"
        remedy = f"restore it from a backup, or remove it and run `mep register {path.parent.name} --new-keys`"
        raise CliFailed(f"{path}: the key could not be {what}" + (f": {remedy}" if existing else ""))
    return public


def _work(kind: KeyKind, descriptor: int, existing: bool, answers: socket.socket) -> None:
    if existing:
        secret = os.read(descriptor, SECRET_BYTES + 1)
        if len(secret) != SECRET_BYTES:
            return
    else:
        secret = _new(kind)
        os.write(descriptor, secret)
        os.fsync(descriptor)
    answers.send(_public(kind, secret).encode("ascii"))


def _new(kind: KeyKind) -> bytes:
    if kind is KeyKind.LINK:
        import zmq
        from zmq.utils import z85

        return z85.decode(zmq.curve_keypair()[1])
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.generate().private_bytes_raw()


def _public(kind: KeyKind, secret: bytes) -> str:
    if kind is KeyKind.LINK:
        import zmq
        from zmq.utils import z85

        return zmq.curve_public(z85.encode(secret)).decode()
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw().hex()

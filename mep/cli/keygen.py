"""`python -I -m mep.cli.keygen link|unseal DESCRIPTOR [--existing]`: one key pair, as the account that owns it.

Writes the 32 bytes of a new secret key to the inherited descriptor (or reads an existing one from it) and prints the
public key, in the form that the relay's API takes. Run by mep/cli/registering.py in a child that has dropped root.
"""

from __future__ import annotations

import os
import sys

SECRET_BYTES = 32


def _new_link() -> bytes:
    import zmq
    from zmq.utils import z85

    return z85.decode(zmq.curve_keypair()[1])


def _public_link(secret: bytes) -> str:
    import zmq
    from zmq.utils import z85

    return zmq.curve_public(z85.encode(secret)).decode()


def _new_unseal() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.generate().private_bytes_raw()


def _public_unseal(secret: bytes) -> str:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw().hex()


_KINDS = {"link": (_new_link, _public_link), "unseal": (_new_unseal, _public_unseal)}


def main() -> None:
    """Make the pair that the first argument names."""
    if 0 in os.getresuid() or 0 in os.getresgid():
        sys.exit("keygen: refuses to run as root")
    make, public = _KINDS[sys.argv[1]]
    descriptor = int(sys.argv[2])
    if sys.argv[3:] == ["--existing"]:
        secret = os.read(descriptor, SECRET_BYTES + 1)
        if len(secret) != SECRET_BYTES:
            sys.exit(f"keygen: the {sys.argv[1]} key has not {SECRET_BYTES} bytes")
    else:
        secret = make()
        os.write(descriptor, secret)
        os.fsync(descriptor)
    sys.stdout.write(public(secret))


if __name__ == "__main__":
    main()

"""`python -I -m mep.cli.keygen link|unseal DESCRIPTOR`: makes one key pair, as the account that will own it.

Writes the 32 bytes of the secret key to the inherited descriptor and prints the public key, in the form that
the relay's API takes. Run by mep/cli/registering.py in a child that has dropped root.
"""

from __future__ import annotations

import os
import sys


def _link_pair() -> tuple[bytes, str]:
    import zmq
    from zmq.utils import z85

    public, secret = zmq.curve_keypair()
    return z85.decode(secret), public.decode()


def _unseal_pair() -> tuple[bytes, str]:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    key = X25519PrivateKey.generate()
    return key.private_bytes_raw(), key.public_key().public_bytes_raw().hex()


def main() -> None:
    """Make the pair that the first argument names."""
    if 0 in os.getresuid() or 0 in os.getresgid():
        sys.exit("keygen: refuses to run as root")
    secret, public = {"link": _link_pair, "unseal": _unseal_pair}[sys.argv[1]]()
    descriptor = int(sys.argv[2])
    os.write(descriptor, secret)
    os.fsync(descriptor)
    sys.stdout.write(public)


if __name__ == "__main__":
    main()

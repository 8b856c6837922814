"""Process mep-mapper: verifies start requests, and decides which local user each one means.

It runs as `mapper_account`. It trusts the relay's pinned signing key and the mapping file; it does not trust the
manager, or any document without a valid signature. No other package may import it.
"""

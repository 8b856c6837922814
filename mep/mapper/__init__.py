"""Process mep-mapper: verifies that the relay signed a start request and maps its identities to one local user.

It runs as `mapper_account`. It trusts the relay's pinned signing key and the administrator's mapping. No other
package may import it.
"""

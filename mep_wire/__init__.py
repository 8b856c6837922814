"""The protocol between SDK, relay and endpoint: messages, states, codec, errors.

It runs in every process but root's. Its decoders trust no byte. Every package but `mep.root` may import it.

Imports the standard library and msgspec only, and holds no sockets: bytes become messages here and
messages become bytes; the channel, link and client modules elsewhere move them.
"""

PROTOCOL_VERSION = 1
"""Version of every message on the link. A peer with another version is refused in its hello."""

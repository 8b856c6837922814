"""The shared code of the privilege boundary: messages, the channel that carries them, the resolved configuration.

This package is no process of its own and imports the standard library alone, because root's processes load it. Its
decoder trusts no message. Every package of `mep` may import it.
"""

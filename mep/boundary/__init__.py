"""What monitor, manager and mapper share: messages, channel, sealed memfds, errors, log, resolved configuration.

This package is no process of its own and imports the standard library alone, because root's processes load it. Its
decoder trusts no message. Every package of `mep` may import it.
"""

"""Identity mapping: one person's identity set to exactly one local user.

It runs in the mapper, with identities that the relay has signed, and in `mep map`, with identities that an
administrator types. It trusts the mapping file and the files that this names; it trusts no field of an identity, no
callout's output and no directory's answer. `mep.mapper` and `mep.cli` may import it.

Start at `identity.loader.load` (file to `Chain`), `identity.chain.Chain.map` (identities to `LocalUser`) and
`identity.reloader.Reloader` (the same, following changes of the file). Imports the standard library, google-re2
and, only where a file needs them, ldap3 and yaml.
"""

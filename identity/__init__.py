"""Identity mapping: one person's identity set to exactly one local user.

Who calls it: the mapper process (`mep/mapper`), with identities that the relay has signed, and `mep map`, with
identities that an administrator types. What it trusts: the mapping file and the files it names, which belong to
the site; no identity's field, no callout's output and no directory's answer.

Start at `identity.loader.load` (file to `Chain`), `identity.chain.Chain.map` (identities to `LocalUser`) and
`identity.reloader.Reloader` (the same, following changes of the file). Imports the standard library, google-re2
and, only where a file needs them, ldap3 and yaml.
"""

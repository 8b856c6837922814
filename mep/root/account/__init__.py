"""Account look-up and policy, and the short-lived processes that check an account.

They run as root: in the keeper, in a child of the monitor, or in a child of `mep map`. They trust NSS and the shadow
file. `mep.root.keeper`, `mep.root.monitor` and `mep.cli` may import it.
"""

"""Process mep-pam: opens the PAM session of one user endpoint and holds it until the end.

The keeper forks one as root where PAM is enabled. It trusts the PAM modules that the site configured, which run
inside it. `mep.root.keeper` and `mep.root.monitor` may import it.
"""

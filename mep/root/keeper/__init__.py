"""Process mep-keeper: policy, hooks, control group and supervision of one user endpoint.

The monitor forks one as root for each user endpoint. It trusts the order that it inherits from the monitor, NSS and
the administrator's hooks; it does not trust its user endpoint. Only `mep.root.monitor` may import it.
"""

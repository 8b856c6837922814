"""The configuration in force, which a reload replaces. The monitor's modules share this object and read it at each use.

It holds no state of the monitor's own. Made by main.py, changed by reload.py alone.
"""

from __future__ import annotations

import os

from mep.boundary.resolved_config import Resolved
from mep.root.account.account_check import AccountChecks
from mep.root.account.lookup import AccountRules
from mep.root.account.system_accounts import uids_of


class Configuration:
    """The resolved document, the bundle, and the endpoint's own uids as this host knows them now."""

    def __init__(self, resolved: Resolved, bundle: int, open_files: tuple[int, int]) -> None:
        """`open_files` are the limits with which this process began; its children get them."""
        self.resolved, self.bundle, self.open_files = resolved, bundle, open_files
        self.own_uids = _own_uids(resolved)

    def replace(self, resolved: Resolved, bundle: int) -> None:
        """Put another one in force, and close the bundle of the former."""
        os.close(self.bundle)
        self.resolved, self.bundle, self.own_uids = resolved, bundle, _own_uids(resolved)

    def rules(self) -> AccountRules:
        """Return the rules about accounts."""
        return AccountRules(
            policy=self.resolved.policy,
            own_accounts=tuple(self.resolved.own_accounts),
            own_uids=self.own_uids,
            only_uid=None if self.resolved.multi_user else os.getuid(),
        )

    def account_checks(self) -> AccountChecks:
        """Return the re-checks of accounts, for keepers."""
        pam, interval_s = self.resolved.pam, self.resolved.manager.recheck_interval_s
        return AccountChecks(self.rules(), interval_s, pam.service_name if pam.enable and pam.recheck else "")


def _own_uids(resolved: Resolved) -> tuple[int, ...]:
    return uids_of(resolved.own_accounts) if resolved.multi_user else ()

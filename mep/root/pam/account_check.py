"""PAM's account stage alone: whether PAM would let an account in now. No session is opened.

Called in a short-lived process of its own, as root, because a module may hang or change its caller. `mep map` calls it
where a start would; a checker calls it if `pam.recheck` is set.
"""

from __future__ import annotations

from mep.boundary.channel import clip
from mep.boundary.errors import SITE_SAYS, Refusal, SpawnFailed, StartStage, public_text
from mep.boundary.text import printable
from mep.root.account.lookup import NotKnownNow, StartRefused
from mep.root.pam import libpam

MAX_REASON = 512
"""Longest text of modules, in bytes, that a person gets."""


def ask(service: str, user: str, *, running: bool = False) -> None:
    """Raise StartRefused if PAM's `service` doesn't admit `user`, SpawnFailed if PAM doesn't work.

    `running`: the user has running processes. Then only a closed account raises StartRefused, and all other failures
    raise SpawnFailed.
    """
    try:
        transaction = libpam.Transaction(service, user, lambda _: None)
        transaction.check_account()
        name = transaction.user()
        transaction.end()
    except libpam.PamFailed as failure:
        if failure.code in libpam.BROKEN or (running and failure.code not in libpam.CLOSED):
            raise SpawnFailed(StartStage.PAM_ACCOUNT, 0, str(failure)) from None
        raise refusal_of(StartStage.PAM_ACCOUNT, failure) from None
    except OSError as error:
        raise SpawnFailed(StartStage.PAM_ACCOUNT, error.errno or 0, str(error)) from None
    if name != user:
        raise _refused(f"PAM service {service} means another user: {name}")


def refusal_of(stage: StartStage, failure: libpam.PamFailed) -> StartRefused:
    """Return the refusal of a start for PAM's answer: for now, if a later try may succeed, else for good.

    Modules address their texts to the person, so the person gets them: on one line, escaped and clipped.
    """
    said = clip(printable(" ".join(" ".join(failure.texts).split())), MAX_REASON).strip()
    if failure.is_temporary(account_stage=stage is StartStage.PAM_ACCOUNT):
        reason = (said or failure.reason).rstrip(".")
        code = Refusal.NOT_ADMITTED_NOW
        return NotKnownNow(stage, code, public_text(code, reason=reason), str(failure))
    code = Refusal.ACCOUNT_REFUSED
    return StartRefused(stage, code, SITE_SAYS.format(reason=said) if said else public_text(code), str(failure))


def _refused(detail: str) -> StartRefused:
    code = Refusal.ACCOUNT_REFUSED
    return StartRefused(StartStage.PAM_ACCOUNT, code, public_text(code), detail)

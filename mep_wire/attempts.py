"""How often a task may be begun: what the person asks for, the endpoint's default and its administrator's limit.

Only attempts that had begun and were lost count: a worker, block, user endpoint or host died. Both the user endpoint
and the relay decide by this: the first if its workers die, the second if the user endpoint itself dies.
"""

from __future__ import annotations

from mep_wire.limits import MAX_ATTEMPTS


def allowed_attempts(asked: int, default: int, most: int) -> int:
    """Return how often a task may be begun. `asked` is 0 where the person says nothing, `most` 0 for no limit of the
    administrator's; MAX_ATTEMPTS holds whatever they say, as no message has a higher number."""
    return max(1, min(asked or default, most or MAX_ATTEMPTS, MAX_ATTEMPTS))


def on_attempt(text: str, attempt: int, allowed: int) -> str:
    """Return the sentence on a loss with which attempt it was."""
    return f"{text} (attempt {attempt} of {allowed})"

"""Commands of globus-compute-endpoint without a counterpart here: each prints the alternative in a sentence."""

from __future__ import annotations

import click

from mep.cli.exit_codes import CliFailed, Exit

INSTEAD = {
    "login": "there is no login: `configure`, `register` and `delete` take your access token at the relay from "
    "--token-file, from MEP_TOKEN, or ask for it",
    "logout": "there is nothing to log out of: no token of yours is kept here; the relay's administrator revokes one "
    "with `mep-relay user token NAME`, which makes a new one",
    "whoami": "no login exists here: an endpoint belongs to the identity whose token registered it",
    "migrate-to-template-capable": "no migration is needed: `mep adopt DIRECTORY` takes the endpoint's directory as it "
    "is",
    "python-exec": "run the endpoint's own interpreter, /opt/mep/bin/python",
    "user-endpoint": "the running endpoint starts them, when tasks arrive: `mep start NAME`",
    "version": "run `mep --version`",
}


def suggestion_for(name: str) -> click.Command | None:
    """Return a command that refuses with one sentence, for a name of INSTEAD; None for any other name."""
    if name not in INSTEAD:
        return None

    @click.command(name, hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    def refuse() -> None:
        raise CliFailed(f"{name}: {INSTEAD[name]}", Exit.USAGE)

    return refuse

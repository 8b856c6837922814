"""Values of user_environment.yaml: ${HOME} and ${USER} are the account's, all else stays."""

from __future__ import annotations

from mep_wire.bundle import expanded


def test_what_is_replaced() -> None:
    given = {"A": "${HOME}/x:${USER}", "B": "$HOME ${SCRATCH} $$ ${HOME", "C": ""}
    assert expanded(given, {"HOME": "/home/al$ice", "USER": "alice"}) == {
        "A": "/home/al$ice/x:alice", "B": "$HOME ${SCRATCH} $$ ${HOME", "C": "",
    }  # fmt: skip

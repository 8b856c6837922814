"""The child that talks to the relay with the administrator's token, and others of its account."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mep.cli.dropped import READY
from tests.support.accounts import account


def test_a_process_of_the_same_account_cannot_reach_the_token() -> None:
    with account() as manager:
        as_manager = {"user": manager.uid, "group": manager.gid, "extra_groups": []}
        child = subprocess.Popen(
            [sys.executable, "-I", "-m", "mep.cli.relay_call"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            **as_manager,  # type: ignore[call-overload]  # the identity goes in as keywords
        )
        with child:
            assert child.stdout.read(len(READY)) == READY
            look = "import sys; [open(sys.argv[1] + name, 'rb') for name in sys.argv[2:3]]"
            for name in ("fd/0", "mem", "environ"):
                spy = [sys.executable, "-I", "-c", look, f"/proc/{child.pid}/", name]
                said = subprocess.run(spy, capture_output=True, text=True, check=False, cwd="/", **as_manager)  # type: ignore[call-overload]
                assert "PermissionError" in said.stderr
            assert Path(f"/proc/{child.pid}/status").exists()
            assert os.waitpid(child.pid, os.WNOHANG) == (0, 0)
            child.kill()

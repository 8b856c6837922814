"""Running one of our own modules in a child that has dropped root, with secrets by descriptor and never by argument.

Used by configure, register and delete: whatever makes keys or talks to the network does so without privilege.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Sequence

from mep.cli.failures import CliFailed

TIMEOUT_S = 120
_KEPT = ("LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR")


def clean_environment() -> dict[str, str]:
    """Return the environment for our own children: nothing that could change what they run."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **kept}


def run_module(
    module: str,
    arguments: Sequence[str],
    *,
    account: pwd.struct_passwd | None,
    stdin: bytes = b"",
    descriptor: int = -1,
) -> bytes:
    """Run `python -I -m module` as `account` (None: as we are) and return what it printed.

    What it writes to standard error goes to ours. `descriptor`, if given, is inherited under its own number.
    Raises CliFailed with what the child said last where it does not exit with 0.
    """
    argv = [sys.executable, "-I", "-m", module, *arguments]
    identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    try:
        done = subprocess.run(  # type: ignore[call-overload]  # the identity goes in as keywords
            argv,
            input=stdin,
            stdout=subprocess.PIPE,
            timeout=TIMEOUT_S,
            check=False,
            cwd="/",
            env=clean_environment(),
            umask=0o077,
            start_new_session=False,
            pass_fds=[descriptor] if descriptor >= 0 else [],
            **identity,
        )
    except subprocess.TimeoutExpired:
        raise CliFailed(f"{module} did not end within {TIMEOUT_S} s") from None
    except OSError as error:
        raise CliFailed(f"{argv[0]}: {error.strerror}") from None
    if done.returncode != 0:
        raise CliFailed(f"{module} failed with status {done.returncode}")
    output: bytes = done.stdout
    return output

"""Running one of our own modules in a child that has dropped root, with secrets by descriptor and never by argument.

Used by configure, register and delete: whatever makes keys or talks to the network does so without privilege.
"""

from __future__ import annotations

import os
import pwd
import select
import subprocess
import sys
from collections.abc import Sequence

from mep.cli.failures import CliFailed

TIMEOUT_S = 120
READY = b"ready\n"
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

    What it writes to standard error goes to ours. `descriptor`, if given, is inherited under its own number. `stdin` is
    only handed to it once it has said `ready`, on a line: it is secret from the account's other processes too.
    Raises CliFailed with what the child said last where it does not exit with 0.
    """
    argv = [sys.executable, "-I", "-m", module, *arguments]
    identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    try:
        with subprocess.Popen(  # type: ignore[call-overload]  # the identity goes in as keywords
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env=clean_environment(),
            umask=0o077,
            start_new_session=False,
            pass_fds=[descriptor] if descriptor >= 0 else [],
            **identity,
        ) as child:
            try:
                output: bytes = child.communicate(stdin if not stdin or _is_ready(child) else b"", TIMEOUT_S)[0]
            except BaseException:
                child.kill()
                raise
    except subprocess.TimeoutExpired:
        raise CliFailed(f"{module} did not end within {TIMEOUT_S} s") from None
    except OSError as error:
        raise CliFailed(f"{argv[0]}: {error.strerror}") from None
    if child.returncode != 0:
        raise CliFailed(f"{module} failed with status {child.returncode}")
    return output


def _is_ready(child: subprocess.Popen[bytes]) -> bool:
    """Wait for the child's first line; False where it has ended instead. Raises subprocess.TimeoutExpired."""
    assert child.stdout is not None
    if not select.select([child.stdout], [], [], TIMEOUT_S)[0]:
        raise subprocess.TimeoutExpired(child.args, TIMEOUT_S)
    return os.read(child.stdout.fileno(), len(READY)) == READY

"""The administrator's own programs around a user endpoint's life: pre_start_hook and post_stop_hook.

The keeper runs a hook as its own account (root), with the request as JSON on standard input, a clean environment and
no other descriptor. A program is trusted only if no account but root (single-user mode: the owner) could have written
it. This is checked before every run, and the checked descriptor is executed. A script keeps that descriptor for its
interpreter to read: its $0 is /proc/self/fd/3, a link to its path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mep.boundary.file_trust import descriptor_path, is_script, ours
from mep.boundary.resolved_config import Hook
from mep.root.kernel.program import STOPPED, Program, never, run

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/"}
_SCRIPT_DESCRIPTOR = 3


@dataclass(frozen=True, slots=True)
class HookResult:
    """The result of a hook. `problem` is empty if the hook ended with exit status 0."""

    problem: str = ""
    said_no: bool = False
    """The hook ran to its end and refused, as opposed to a hook that doesn't work."""
    stopped: bool = False
    """The endpoint is being stopped, and the hook was killed."""
    output: str = ""
    errors: str = ""


def run_hook(
    hook: Hook, name: str, request: bytes, *, left_s: float, watch: Sequence[int] = (), stop: Callable[[], bool] = never
) -> HookResult:
    """Run `hook` to its end, for at most its timeout and `left_s`.

    Whenever a descriptor in `watch` is readable, `stop` is asked whether to kill the hook.
    """
    try:
        descriptor = ours().open_program(hook.path)
    except OSError as error:
        return HookResult(f"{hook.path} cannot be run: {error}")
    try:
        kept = (descriptor, _SCRIPT_DESCRIPTOR) if is_script(descriptor) else None
        path = descriptor_path(kept[1] if kept else descriptor)
        program = Program(path, [hook.path, name], {**_ENVIRONMENT, "MEP_HOOK": name}, kept)
        ran = run(program, min(hook.timeout_s, left_s), request=request, watch=watch, stop=stop)
    except OSError as error:
        return HookResult(f"{hook.path}: cannot be run: {error.strerror}")
    finally:
        os.close(descriptor)
    ended = "" if not ran.code else f"exit status {ran.code}" if ran.code > 0 else f"killed by signal {-ran.code}"
    stopped, said_no = ran.problem == STOPPED, not ran.problem and ran.code > 0
    return HookResult(ran.problem or ended, said_no, stopped, ran.output, ran.errors)

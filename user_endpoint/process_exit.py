"""The outermost frame of every process that a user endpoint is made of: nothing goes past it, nothing returns.

A forked child that let an exception escape would go on in its parent's code, and one that returned would run
its parent's clean-up. Called by main and by whatever forks.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from mep_wire.text import printable_lines

_EXTENSION = "_setproctitle"
_at_exit: list[tuple[int, Callable[[], None]]] = []


def at_exit(work: Callable[[], None]) -> None:
    """Do `work` when this process exits from `run_and_exit`; its children do not. `work` may raise OSError."""
    _at_exit.append((os.getpid(), work))


def name_process(name: str) -> None:
    """Set the name (at most 15 characters) that ps and top show."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(name)


def prepare_title(name: str) -> None:
    """Have setproctitle find the command line in memory, which it can't once the environment has been replaced.

    It then gives the process another short name: `name` is set again.
    """
    if (extension := _title_extension()) is not None:
        extension.getproctitle()
        name_process(name)


def title_process(name: str, kind: str, of: str) -> None:
    """Set the short name to `name`, and the command line that ps shows to `mep.KIND: of`."""
    if (extension := _title_extension()) is not None:
        extension.setproctitle(f"mep.{kind}: {of}")
        name_process(name)


def _title_extension() -> Any:
    """Return setproctitle's C module; None in a person's own Python without it.

    Its package would load logging and threading, and every worker would pay for these.
    """
    if _EXTENSION not in sys.modules:
        from importlib import machinery, util

        spec = machinery.PathFinder.find_spec(_EXTENSION, [f"{entry}/setproctitle" for entry in sys.path])
        if spec is None or spec.loader is None:
            return None
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[_EXTENSION] = module
    return sys.modules[_EXTENSION]


def run_and_exit(work: Callable[[], int], failed: Callable[[str], None] | None = None) -> NoReturn:
    """Run `work` and exit with its return value. If it raises: tell `failed` in one line, print all, exit with 1."""
    status = 1
    try:
        status = work()
    except BaseException as error:  # noqa: BLE001  # said above
        import traceback

        lines = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):
            os.write(2, printable_lines(lines).encode())
        if failed is not None:
            failed(" | ".join(lines.splitlines()))
    finally:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        for pid, last in _at_exit:
            with contextlib.suppress(OSError):
                if pid == os.getpid():
                    last()
        os._exit(status)

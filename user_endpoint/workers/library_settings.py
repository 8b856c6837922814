"""Settings of the standard library's modules that a task may have made for itself, put back as these modules start.

They are a module's own variables, and the modules are imported by tasks, if at all. Those of which a person's library
may be the owner (a policy of asyncio) are put back too: a library sets them when a task calls it. Called by
process_state after each task. Standard library only.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_RANDOM_BYTES = 16


def _asyncio(events: Any) -> None:
    if events._event_loop_policy is not None:  # noqa: SLF001 - the public way makes one
        events._event_loop_policy = None  # noqa: SLF001 - and a loop that the task has left goes with it


def _faulthandler(module: Any) -> None:
    module.cancel_dump_traceback_later()
    if not _FAULTHANDLER:
        module.disable()
    for number in _USUAL_SIGNALS:
        module.unregister(number)


def _logging(module: Any) -> None:
    module._loggerClass = module.Logger  # noqa: SLF001 - setLoggerClass() costs more
    module._logRecordFactory, module.raiseExceptions = module.LogRecord, True  # noqa: SLF001 - as above


def _multiprocessing(context: Any) -> None:
    context._default_context._actual_context = None  # noqa: SLF001 - None is no method for set_start_method()


def _random(module: Any) -> None:
    """A task that seeds it does not choose the numbers of the next."""
    module.seed(int.from_bytes(os.urandom(_RANDOM_BYTES)))


def _threading(module: Any) -> None:
    module._trace_hook = module._profile_hook = None  # noqa: SLF001 - a call for each costs more
    module.excepthook = module.__excepthook__


_FAULTHANDLER = "faulthandler" in sys.modules
_USUAL_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SETTINGS: dict[str, Callable[[Any], None]] = {
    "asyncio.events": _asyncio,
    "faulthandler": _faulthandler,
    "logging": _logging,
    "multiprocessing.context": _multiprocessing,
    "random": _random,
    "threading": _threading,
}


def restore_settings() -> None:
    """Put back the settings of every module that is imported."""
    for name, restore in _SETTINGS.items():
        module = sys.modules.get(name)
        if module is not None:
            restore(module)

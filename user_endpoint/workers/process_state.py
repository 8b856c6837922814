"""The state of a worker's process and interpreter: as a fresh Python has it, and put back after each task.

A worker is forked from a process that is set up for its own work, and runs many tasks. `start_fresh` undoes what the
user endpoint and the fork server have set for themselves. `ProcessState` then remembers what tasks can change and puts
it back after each: working directory and environment are task_environment's. A change that cannot be put back (threads,
niceness, hard limits, closed descriptors, signals that are pending) tells the worker to end after its answer; another
takes a millisecond to fork.

A library that a task imports sets up state too, and is not imported again. Its own directories on sys.path and its
loggers' settings therefore stay; all other state is a task's.

Called by task_environment. Standard library only. Each look costs every task: they take 8 microseconds together.
"""

from __future__ import annotations

import _locale
import _signal  # type: ignore[import-not-found] # no stub; `signal` itself costs ten times as much
import _socket
import _thread
import _warnings  # the list itself: `warnings` need not be imported
import atexit
import builtins
import contextlib
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

_GC_THRESHOLD = gc.get_threshold()
_LIMITS = tuple(
    getattr(resource, f"RLIMIT_{name}")
    for name in ("AS", "CORE", "CPU", "DATA", "FSIZE", "MEMLOCK", "NOFILE", "NPROC", "STACK")
)
_SIGNALS = tuple(number for number in range(1, 65) if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33))
_TIMERS = (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF)
_OFF = (0.0, 0.0)
_STREAMS = (0, 1, 2)
_LocaleError: type[Exception] = getattr(_locale, "Error")  # noqa: B009 - the stub lacks it
_OWN = frozenset({"mep_sdk", "mep_wire", "user_endpoint", "msgspec", "cloudpickle", "__main__", "__mp_main__"})


def start_fresh(umask: int | None, open_files: int | None) -> None:
    """Undo what the user endpoint and the fork server have set for themselves. The environment must be in place.
    `umask` and the soft limit `open_files` are None where the fork server has those of its shell."""
    gc.set_threshold(*_GC_THRESHOLD)
    gc.enable()
    if umask is not None:
        os.umask(umask)
    if open_files is not None:
        with contextlib.suppress(ValueError):  # more than this host's hard limit
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, hard))
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    read_environment()
    sys.argv = [""]
    if sys.stdout is not None:  # what a killed task has printed is then in the log, up to its last whole line
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # Python's own at this point


def read_environment() -> None:
    """Set what Python and the C library read from the environment once: the locale of characters, the time zone."""
    with contextlib.suppress(_LocaleError):  # a locale that this host does not have
        _locale.setlocale(_locale.LC_CTYPE, "")
    time.tzset()


class ProcessState:
    """The state as it was when this object was made: before the worker's first task."""

    def __init__(self) -> None:
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._handlers = list(map(_signal.getsignal, _SIGNALS))
        self._mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self._limits = list(map(resource.getrlimit, _LIMITS))
        self._most_descriptors = self._limits[_LIMITS.index(resource.RLIMIT_NOFILE)][0] // 2
        self._processors, self._scheduling = os.sched_getaffinity(0), _scheduling()
        self._oom_score = os.open("/proc/self/oom_score_adj", os.O_RDONLY | os.O_CLOEXEC)
        self._oom_score_was = os.pread(self._oom_score, 16, 0)
        self._interpreter, self._locale = _interpreter(), _locale.setlocale(_locale.LC_ALL, None)
        self._streams = (sys.stdin, sys.stdout, sys.stderr)
        self._streams_were = _streams_state(self._streams)
        self._path, self._argv = _List("path"), _List("argv")
        self._warnings, self._logging, self._builtins = _Warnings(), _Logging(), vars(builtins).copy()
        self._modules, self._exit_functions = len(sys.modules), _exit_functions()

    def restore(self) -> bool:
        """Undo the changes that can be undone; return whether those were all. Raises OSError where one cannot be."""
        whole = self._restore_signals()
        os.umask(self._umask)
        if _interpreter() != self._interpreter:
            self._restore_interpreter()
        if _locale.setlocale(_locale.LC_ALL, None) != self._locale:
            _locale.setlocale(_locale.LC_ALL, self._locale)
        sys.stdin, sys.stdout, sys.stderr = self._streams
        modules_known = self._restore_modules()
        whole = whole and modules_known and _streams_state(self._streams) == self._streams_were
        return self._restore_process() and self._has_room() and whole

    def _restore_signals(self) -> bool:
        for timer in _TIMERS:
            if _signal.getitimer(timer) != _OFF:
                _signal.setitimer(timer, 0)
        if list(map(_signal.getsignal, _SIGNALS)) != self._handlers:
            for number, handler in zip(_SIGNALS, self._handlers, strict=True):
                _signal.signal(number, handler if handler is not None else _signal.SIG_DFL)
        if _signal.pthread_sigmask(_signal.SIG_BLOCK, ()) == self._mask:
            return True
        if _signal.sigpending() - self._mask:
            return False  # delivered now, it could end this process before the task's answer is sent
        _signal.pthread_sigmask(_signal.SIG_SETMASK, self._mask)
        return True

    def _restore_interpreter(self) -> None:
        enabled, threshold, recursion, switch, digits, trace, profile, hooks, timeout = self._interpreter
        (gc.enable if enabled else gc.disable)()
        gc.set_threshold(*threshold)
        sys.setrecursionlimit(recursion)
        sys.setswitchinterval(switch)
        sys.set_int_max_str_digits(digits)
        sys.settrace(trace)
        sys.setprofile(profile)
        sys.excepthook, sys.displayhook, sys.unraisablehook = hooks
        _socket.setdefaulttimeout(timeout)

    def _restore_modules(self) -> bool:
        """Put back the state of modules. Return False where the task has registered a function for the exit, or has
        removed modules."""
        count, library = len(sys.modules), False
        if count < self._modules:
            return False
        imported = count != self._modules
        if imported:
            library = any(map(_is_library, list(sys.modules)[self._modules :]))
            self._modules = count
        self._path.restore(keep=_in_packages if library else None)
        self._argv.restore()
        self._warnings.restore()
        self._logging.restore(keep=library)
        if vars(builtins) != self._builtins:
            self._restore_builtins(keep=library)
        functions = _exit_functions()
        known = imported or functions == self._exit_functions
        self._exit_functions = functions
        return known

    def _restore_builtins(self, *, keep: bool) -> None:
        if keep:  # a library that was imported may have added some, and is not imported again
            self._builtins = vars(builtins).copy()
            return
        for name in vars(builtins).keys() - self._builtins.keys():
            del vars(builtins)[name]
        vars(builtins).update(self._builtins)

    def _restore_process(self) -> bool:
        if os.sched_getaffinity(0) != self._processors:
            os.sched_setaffinity(0, self._processors)
        if list(map(resource.getrlimit, _LIMITS)) != self._limits:
            for number, limit in zip(_LIMITS, self._limits, strict=True):
                resource.setrlimit(number, limit)
        return _scheduling() == self._scheduling and os.pread(self._oom_score, 16, 0) == self._oom_score_was

    def _has_room(self) -> bool:
        """Whether the task has left no thread, and few descriptors. Raises OSError where a standard one is closed."""
        for descriptor in _STREAMS:
            os.get_inheritable(descriptor)
        lowest = os.dup(0)
        os.close(lowest)
        return not _threads() and lowest <= self._most_descriptors


class _List:
    """A list of sys, and its content."""

    def __init__(self, name: str) -> None:
        self._name, self._object = name, getattr(sys, name)
        self._was = self._object[:]

    def restore(self, keep: Callable[[object, list[Any]], bool] | None = None) -> None:
        """Put it back; entries for which `keep` is true stay."""
        now = getattr(sys, self._name)
        if now is self._object and now == self._was:
            return
        if keep is not None:
            self._was += [entry for entry in now if keep(entry, self._was)]
        self._object[:] = self._was
        setattr(sys, self._name, self._object)


def _in_packages(entry: object, path: list[Any]) -> bool:
    """Whether a directory is inside an installed package: the import of that package has added it."""
    installed = tuple(f"{each}/" for each in path if str(each).endswith("-packages"))
    return isinstance(entry, str) and entry not in path and entry.startswith(installed)


def _is_library(module: str) -> bool:
    top = module.partition(".")[0]
    return top not in sys.stdlib_module_names and top not in _OWN


class _Warnings:
    """The filters of warnings, and who shows them. The module need not have been imported."""

    def __init__(self) -> None:
        self._object: list[Any] = _warnings.filters
        self._was = self._object[:]

    def restore(self) -> None:
        """Put them back."""
        module: Any = sys.modules.get("warnings")
        if self._object != self._was or (module is not None and module.filters is not self._object):
            import warnings

            warnings.filters = self._object
            warnings.simplefilter("default")  # only this tells the interpreter that the list has changed
            self._object[:] = self._was
        if module is not None:
            module.showwarning = module._showwarning_orig  # noqa: SLF001 - the one that calls Python's own


_Logger = tuple[int, tuple[Any, ...], tuple[Any, ...], bool, bool]
_NEW_LOGGER: _Logger = (0, (), (), True, False)
_NEW_ROOT: _Logger = (30, (), (), True, False)


class _Logging:
    """The settings of the root logger and of named ones. The module is imported by tasks, if at all."""

    def __init__(self) -> None:
        self._known: dict[str, _Logger] = {}
        self._root = _NEW_ROOT
        if (logging := sys.modules.get("logging")) is not None:
            self._root, self._known = _logger_state(logging.root), dict(self._named(logging))

    def restore(self, *, keep: bool) -> None:
        """Put them back; named loggers stay as they are with `keep`: a library that was imported has set them up."""
        logging = sys.modules.get("logging")
        if logging is None:
            return
        if logging.root.manager.disable:
            logging.disable(0)
        if _logger_state(logging.root) != self._root:
            _set_logger(logging.root, self._root)
        now = dict(self._named(logging))
        if keep:
            self._known = now
        elif now != self._known:
            for name, state in now.items():
                if state != (was := self._known.setdefault(name, _NEW_LOGGER)):
                    _set_logger(logging.root.manager.loggerDict[name], was)

    @staticmethod
    def _named(logging: Any) -> Iterator[tuple[str, _Logger]]:
        for name, logger in logging.root.manager.loggerDict.items():
            if hasattr(logger, "handlers"):  # else a placeholder
                yield name, _logger_state(logger)


def _logger_state(logger: Any) -> _Logger:
    return logger.level, tuple(logger.handlers), tuple(logger.filters), logger.propagate, logger.disabled


def _set_logger(logger: Any, state: _Logger) -> None:
    level, handlers, filters, logger.propagate, logger.disabled = state
    logger.handlers[:], logger.filters[:] = handlers, filters
    logger.setLevel(level)


_exit_functions: Callable[[], int] = getattr(atexit, "_ncallbacks")  # noqa: B009 - there is no public way
_threads: Callable[[], int] = getattr(_thread, "_count")  # noqa: B009 - threading knows only its own


def _streams_state(streams: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Return how the process's own streams are set up. Raises ValueError for one that was taken apart."""
    return [
        (each.closed, each.encoding, each.errors, each.line_buffering, each.write_through, each.__dict__.copy())
        for each in streams
        if each is not None
    ]


def _interpreter() -> tuple[Any, ...]:
    return (
        gc.isenabled(), gc.get_threshold(), sys.getrecursionlimit(), sys.getswitchinterval(),
        sys.get_int_max_str_digits(), sys.gettrace(), sys.getprofile(),
        (sys.excepthook, sys.displayhook, sys.unraisablehook), _socket.getdefaulttimeout(),
    )  # fmt: skip


def _scheduling() -> tuple[int, int]:
    return os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)

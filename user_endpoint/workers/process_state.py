"""The state of a worker's process and interpreter: as a fresh Python has it, and put back after each task.

A worker is forked from a process that is set up for its own work, and runs many tasks. `start_fresh` undoes what the
user endpoint and the fork server have set for themselves. `ProcessState` then remembers what tasks can change and puts
it back after each: working directory and environment are task_environment's. A change that cannot be put back (threads,
niceness, hard limits, closed descriptors, signals that are pending) tells the worker to end after its answer; another
takes a millisecond to fork.

A library that a task imports sets up state too, and is not imported again. Its own directories on sys.path and its
loggers' settings therefore stay; all other state is a task's.

Called by task_environment. Standard library only. Each look costs every task.
"""

from __future__ import annotations

import _io
import _locale
import _signal  # type: ignore[import-not-found] # no stub; `signal` itself costs ten times as much
import _socket
import _thread
import _tracemalloc
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

from user_endpoint.workers.kernel_state import KernelState
from user_endpoint.workers.library_settings import restore_settings

_GC_THRESHOLD = gc.get_threshold()
_SIGNALS = tuple(number for number in range(1, 65) if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33))
_TIMERS = (_signal.ITIMER_REAL, _signal.ITIMER_VIRTUAL, _signal.ITIMER_PROF)
_OFF = (0.0, 0.0)
_STREAMS = (0, 1, 2)
_SETTERS = {
    "_signal": ("signal", "setitimer", "alarm", "pthread_sigmask", "set_wakeup_fd", "siginterrupt"),
    "signal": ("setitimer", "alarm", "set_wakeup_fd", "siginterrupt"),
    **dict.fromkeys(
        ("posix", "os"),
        (
            *("umask", "setpgid", "setpgrp", "setsid", "nice", "setpriority"),
            *("sched_setaffinity", "sched_setscheduler", "sched_setparam"),
            *("fork", "forkpty", "posix_spawn", "posix_spawnp", "system"),  # a child may change its parent's state
            *("setuid", "setgid", "seteuid", "setegid", "setreuid", "setregid", "setresuid", "setresgid"),
            *("setgroups", "initgroups", "unshare", "setns"),  # the last two since Python 3.12
        ),
    ),
    "_locale": ("setlocale",),
    "time": ("tzset",),
}
"""What pure Python can only change by a call of these."""
_setlocale, _tzset = _locale.setlocale, time.tzset  # ours are no task's calls
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
    sys.stdout = sys.__stdout__ = _output(1, sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _output(2, sys.stderr)  # type: ignore[misc]


def _output(number: int, inherited: Any) -> Any:
    """Return a text stream for a descriptor that is another file now than the one `inherited` was made for."""
    if inherited is None:
        return None
    raw = _io.FileIO(number, "w", closefd=False)
    raw.name = inherited.name
    # By lines: what a killed task has printed is then in the log, up to its last whole line.
    buffer, encoding, errors = _io.BufferedWriter(raw), inherited.encoding, inherited.errors
    return _io.TextIOWrapper(buffer, encoding, errors, "\n", True, inherited.write_through)


def read_environment() -> None:
    """Set what Python and the C library read from the environment once: the locale of characters, the time zone."""
    with contextlib.suppress(_LocaleError):  # a locale that this host does not have
        _setlocale(_locale.LC_CTYPE, "")
    _tzset()


class ProcessState:
    """The state as it was when this object was made: before the worker's first task."""

    def __init__(self) -> None:
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._handlers = list(map(_signal.getsignal, _SIGNALS))
        self._mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self._kernel, self._group = KernelState(), os.getpgrp()
        self._most_descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        self._processors, self._scheduling = os.sched_getaffinity(0), _scheduling()
        self._oom_score = os.open("/proc/self/oom_score_adj", os.O_RDONLY | os.O_CLOEXEC)
        self._oom_score_was = os.pread(self._oom_score, 16, 0)
        self._interpreter, self._locale = _interpreter(), _setlocale(_locale.LC_ALL, None)
        self._calls = _watch_setters()
        self._streams = _Streams()
        self._noticed = self._watch_audit_hooks()
        self._lists = [_List(name) for name in ("path", "argv", "meta_path", "path_hooks")]
        self._names = [_Names(vars(module)) for module in (sys, builtins)]
        self._warnings, self._logging = _Warnings(), _Logging()
        self._modules, self._exit_functions = _Modules(), _exit_functions()

    @property
    def touched(self) -> bool:
        """Whether the task may have made processes, or changed what takes a call of _SETTERS or C code to change."""
        return bool(self._calls) or self._modules.differ or self._kernel.reachable

    def restore(self) -> bool:
        """Undo the changes that can be undone; return whether those were all. Raises OSError where one cannot be."""
        touched, called = self.touched, bool(self._calls)
        whole = not touched or self._restore_signals()
        if _interpreter() != self._interpreter:
            self._restore_interpreter()
        streams_whole = self._streams.restore()
        modules_known, library = self._restore_modules()
        whole = (not touched or self._restore_process()) and whole
        self._calls.clear()
        whole = self._kernel.restore(library=library, called=called) and whole
        whole = os.pread(self._oom_score, 16, 0) == self._oom_score_was and whole
        return whole and self._has_room() and modules_known and streams_whole

    def _restore_signals(self) -> bool:
        _signal.set_wakeup_fd(-1)
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
        enabled, threshold, recursion, switch, digits, trace, profile, timeout, *rarely = self._interpreter
        (gc.enable if enabled else gc.disable)()
        gc.set_threshold(*threshold)
        sys.setrecursionlimit(recursion)
        sys.setswitchinterval(switch)
        sys.set_int_max_str_digits(digits)
        sys.settrace(trace)
        sys.setprofile(profile)
        _socket.setdefaulttimeout(timeout)
        debug, callbacks, stack_size, dlopen, asyncgen, origin, tracing = rarely
        gc.set_debug(debug)
        del gc.callbacks[callbacks:]
        _thread.stack_size(stack_size)
        sys.setdlopenflags(dlopen)
        sys.set_asyncgen_hooks(*asyncgen)
        sys.set_coroutine_origin_tracking_depth(origin)
        if not tracing:
            _tracemalloc.stop()

    def _restore_modules(self) -> tuple[bool, bool]:
        """Put back the state of modules. Return whether that is all, and whether a library was imported. It is not all
        where the task has registered a function for the exit, or an audit hook."""
        imported, library = self._modules.restore()
        for names in self._names:
            names.restore(keep=library)
        for each in self._lists:
            each.restore(keep=library)
        self._warnings.restore()
        self._logging.restore(keep=library)
        restore_settings()
        functions = _exit_functions()
        known = imported or functions == self._exit_functions
        self._exit_functions = functions
        return known and not self._noticed, library

    @staticmethod
    def _watch_audit_hooks() -> list[None]:
        """Return a list that is no longer empty after a task has added an audit hook, which nothing can remove."""
        noticed: list[None] = []
        add = sys.addaudithook

        def addaudithook(hook: Callable[[str, tuple[Any, ...]], Any]) -> None:
            noticed.append(None)
            add(hook)

        sys.addaudithook = addaudithook
        return noticed

    def _restore_process(self) -> bool:
        os.umask(self._umask)
        _tzset()
        if _setlocale(_locale.LC_ALL, None) != self._locale:
            _setlocale(_locale.LC_ALL, self._locale)
        if os.sched_getaffinity(0) != self._processors:
            os.sched_setaffinity(0, self._processors)
        if os.getpgrp() != self._group:
            os.setpgid(0, self._group)
        return _scheduling() == self._scheduling

    def _has_room(self) -> bool:
        """Whether the task has left no thread, and few descriptors."""
        lowest = os.dup(0)
        os.close(lowest)
        return not _threads() and lowest <= self._most_descriptors


def _watch_setters() -> list[None]:
    """Return a list that is no longer empty after a call of one of _SETTERS."""
    noticed: list[None] = []
    watched: dict[Any, Any] = {}
    for module, names in _SETTERS.items():
        for name in names:
            call = getattr(sys.modules[module], name, None)
            if call is None:
                continue
            if call not in watched:
                watched[call] = _noticing(call, noticed)
            setattr(sys.modules[module], name, watched[call])
    return noticed


def _noticing(call: Any, noticed: list[None]) -> Any:
    def noticing(*args: Any, **kwargs: Any) -> Any:
        noticed.append(None)
        return call(*args, **kwargs)

    noticing.__name__ = noticing.__qualname__ = call.__name__
    noticing.__module__, noticing.__doc__ = call.__module__, call.__doc__
    return noticing


class _Streams:
    """Descriptors 0 to 2, and the objects of sys over them. All workers write to the same open pipe."""

    def __init__(self) -> None:
        self._descriptors = [(os.dup(number), number) for number in _STREAMS]
        self._objects = (sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__)
        self._texts = [(stream, _text_state(stream)) for stream in self._objects[:3] if stream is not None]

    def restore(self) -> bool:
        """Put them back; return False where the task has closed one of the objects. Raises OSError, ValueError."""
        for kept, number in self._descriptors:
            os.dup2(kept, number)
        if not os.get_blocking(1):
            os.set_blocking(1, True)
        sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__ = self._objects  # type: ignore[misc]
        for stream, state in self._texts:
            if _text_state(stream) != state:
                if stream.closed or vars(stream) != state[-1]:
                    return False
                encoding, errors, line_buffering, write_through, *_ = state
                stream.reconfigure(  # type: ignore[union-attr]
                    encoding=encoding, errors=errors, line_buffering=line_buffering, write_through=write_through
                )
        return True


def _text_state(stream: Any) -> tuple[Any, ...]:
    return (
        stream.encoding,
        stream.errors,
        stream.line_buffering,
        stream.write_through,
        stream.closed,
        vars(stream).copy(),
    )


class _List:
    """A list of sys, and its content. The object itself is one of sys's names."""

    def __init__(self, name: str) -> None:
        self._is_path, self._object = name == "path", getattr(sys, name)
        self._keeps = name != "argv"
        self._was = self._object[:]

    def restore(self, *, keep: bool) -> None:
        """Put it back. With `keep`, a library was imported: what that has added stays."""
        if self._object == self._was:
            return
        if keep and self._keeps:
            self._was += [entry for entry in self._object if self._is_librarys(entry)]
        self._object[:] = self._was

    def _is_librarys(self, entry: object) -> bool:
        return _in_packages(entry, self._was) if self._is_path else entry not in self._was


class _Names:
    """The names of a module and their values. A list of them is compared four times as fast as a dictionary."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names, self._was, self._values = names, names.copy(), list(names.values())

    def restore(self, *, keep: bool) -> None:
        """Put them back. With `keep`, a library was imported: the names that it has added stay."""
        names = self._names
        if list(names.values()) == self._values:
            return
        for name in [name for name in names if name not in self._was and not keep]:
            del names[name]
        names.update(self._was)
        self._was, self._values = names.copy(), list(names.values())


class _Modules:
    """Which modules are loaded. Those from before the first task are put back where a task has replaced them."""

    def __init__(self) -> None:
        self._first = sys.modules.copy()
        self._known, self._names = list(self._first.values()), set(self._first)

    @property
    def differ(self) -> bool:
        """Whether there may be others than after the task before: the cheapest look."""
        return len(sys.modules) != len(self._known)

    def restore(self) -> tuple[bool, bool]:
        """Return whether there are other modules than before, and whether a library is among the new ones."""
        modules = sys.modules
        if list(modules.values()) == self._known:
            return False, False
        if len(modules) < len(self._known):
            raise ValueError("a task has removed modules")  # which ends the worker
        new = modules.keys() - self._names
        modules.update(self._first)
        for name in [name for name, module in modules.items() if module is None]:
            del modules[name]  # it stood for "do not import"
        self._known, self._names = list(modules.values()), set(modules)
        return bool(new), any(map(_is_library, new))


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


def _interpreter() -> tuple[Any, ...]:
    return (
        gc.isenabled(), gc.get_threshold(), sys.getrecursionlimit(), sys.getswitchinterval(),
        sys.get_int_max_str_digits(), sys.gettrace(), sys.getprofile(), _socket.getdefaulttimeout(),
        gc.get_debug(), len(gc.callbacks), _thread.stack_size(), sys.getdlopenflags(), sys.get_asyncgen_hooks(),
        sys.get_coroutine_origin_tracking_depth(), _tracemalloc.is_tracing(),
    )  # fmt: skip


def _scheduling() -> tuple[int, int]:
    return os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)

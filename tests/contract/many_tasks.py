"""Runs 200,000 tasks through one worker and prints its native heap in bytes, after 50,000 of them and after all.

A program of its own, since it forks a worker without an engine: the test's time goes into the tasks.
"""

from __future__ import annotations

import os

from mep_sdk.serialize import load_result, serialize_arguments, serialize_function
from user_endpoint.workers import datagrams
from user_endpoint.workers.worker import serve

FIRST, ALL, AT_ONCE = 50_000, 200_000, 16


def work() -> None:
    pass


def heap() -> int:
    import ctypes
    import gc

    class Mallinfo2(ctypes.Structure):
        _fields_ = [(f"f{number}", ctypes.c_size_t) for number in range(10)]

    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo2
    found = libc.mallinfo2()
    return int(found.f4 + found.f7)  # hblkhd, in mmapped regions, and uordblks


def main() -> None:
    ours, theirs = datagrams.pair()
    if os.fork() == 0:
        ours.close()
        serve(theirs, 1 << 20)
        os._exit(0)
    theirs.close()
    code, other, arguments = serialize_function(work), serialize_function(heap), serialize_arguments((), {})
    sent = 0

    def send() -> None:
        nonlocal sent
        sent += 1
        measured = sent in (FIRST, ALL)
        task = (sent, f"0197c2a4-0000-7000-8000-{sent:012d}", "heap" if measured else "work",
                other if measured else code, arguments, {"PER_TASK": f"value {sent}"}, 1)  # fmt: skip
        datagrams.send(ours, task)

    for _ in range(AT_ONCE):
        send()
    for row in range(1, ALL + 1):
        answer, _ = datagrams.receive(ours)
        if answer[:2] != (row, ""):
            raise SystemExit(f"task {row}: {answer}")
        if row in (FIRST, ALL):
            print(load_result(answer[3]))
        if sent < ALL:
            send()


if __name__ == "__main__":
    main()

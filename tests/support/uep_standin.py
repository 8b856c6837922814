"""Stands in for a user endpoint: follows the start document, as the mapped user."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time

order = json.loads(os.pread(3, 65536, 0))
report = socket.socket(fileno=5)
mode = order["mode"]

time.sleep(order.get("delay_s", 0))
if "write" in order:
    with open(order["write"], "w") as file:
        json.dump({"pid": os.getpid(), "cwd": os.getcwd(), "bundle": os.pread(4, 100, 0).decode()}, file)
if mode == "exit":
    sys.exit(order.get("status", 3))
if mode == "fail":
    report.send(b"FAILED\nENDPOINT_MISCONFIGURED\npublic\x1b[31m text\ndetail for the administrator")
    sys.exit(1)
if mode == "contrary":
    report.send(b"FAILED\nENGINE_FAILED\npublic\ndetail")
if mode == "silent":
    time.sleep(3600)
if mode == "garbage":
    for datagram in (b"\xff" * 4096, b"FAILED\nlower case\nx\ny", b"READY now", b"\0", b"ENDED\n" + b"A" * 65 + b"\nx"):
        report.send(datagram)
if mode == "notice":
    report.send(b"READY")
    report.send(b"NOTICE\nFUNCTION_CODE_CHANGED\nfunction f\x1b[31m\tis=not the pinned one")
    time.sleep(3600)
if mode == "flood":
    report.send(b"READY")
    while True:
        try:
            report.send(b"nonsense")
        except OSError:
            time.sleep(3600)
if mode == "respawn":
    # A chain that forks and ends as fast as it can: its pid changes all the time.
    first = os.fork()
    while first == 0 and os.fork() == 0:
        pass
    if first == 0:
        os._exit(0)
if mode == "storm" and os.fork() == 0:
    os.execv(order["program"], ["storm", *order["words"]])
if mode == "outlives":
    # It takes its keeper's death for no reason to die (PR_SET_PDEATHSIG).
    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
if mode == "ignore-term":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "orphans":
    # Twice forked, in a new session, closed to the outside: it must not survive.
    for _ in range(3):
        subprocess.Popen(
            [sys.executable, "-I", "-c", "import os,time\nif os.fork() == 0:\n os.setsid()\n time.sleep(3600)"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=True,
        ).wait()  # fmt: skip
if mode == "join":
    # Into a PID namespace that the account holds elsewhere: that namespace's init is the parent of the orphans there.
    words = ["nsenter", "--user", "--preserve-credentials", "--pid", "--target", str(order["target"])]
    subprocess.run([*words, "setsid", "sh", "-c", f"sleep {order['seconds']} &"], check=True, close_fds=True)
if mode == "term-ends":

    def end(_number: int, _frame: object) -> None:
        report.send(b"ENDED\nIDLE\nnothing to do")
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
report.send(b"READY")
time.sleep(order.get("life_s", 3600))
if "ended" in order:
    report.send(("ENDED\n" + order["ended"] + "\nnothing to do").encode())

"""Measures the submission path of the relays of several checkouts, such as one before a change and one after it.

    git worktree add /tmp/before COMMIT; python benchmarks/relay_submit.py /tmp/before . [--legs 15] [--requests 2000]

Each leg starts a relay from a checkout, with the libraries of this interpreter. The legs of the checkouts alternate.
The table has medians over the legs. Submissions a second are those of 4 connections. Latency and CPU time are those of
one connection, for a submission and for a look at an endpoint's status. Memory is that of a new relay. Other load on
the host disturbs the CPU time least. It asserts nothing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec

HEADERS = {"content-type": "application/msgpack", "accept": "application/msgpack"}
UNITS = ("requests/s", "ms", "us of CPU", "us of CPU for a status", "kB")
CODE = """
import sys; sys.path.insert(0, {!r})
import relay.cli, relay.cli_common
relay.cli_common.become = lambda _: None
relay.cli.main()
"""


def command(checkout: str, state: Path, *words: str) -> list[str]:
    """Return the command line of a checkout's `mep-relay`, which stays this account."""
    return [sys.executable, "-P", "-c", CODE.format(checkout), *words, "--state", str(state)]


def ask(
    port: int, token: str, method: str, path: str, body: object = None, count: int = 1
) -> tuple[dict[str, object], list[float]]:
    """Make a request `count` times on one connection. Return the last answer, and the seconds that each took."""
    connection, times, data = http.client.HTTPConnection("127.0.0.1", port), [], b""
    headers, sent = {**HEADERS, "authorization": f"Bearer {token}"}, msgspec.msgpack.encode(body)
    for _ in range(count):
        before = time.perf_counter()
        connection.request(method, path, None if body is None else sent, headers)
        answer = connection.getresponse()
        data = answer.read()
        assert answer.status == 200, data
        times.append(time.perf_counter() - before)
    connection.close()
    return msgspec.msgpack.decode(data), times


def cpu_us(pid: int) -> float:
    """Return the CPU time of a process's threads so far, in microseconds."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e3


def measure(pid: int, port: int, token: str, requests: int) -> tuple[float, ...]:
    """Return the figures of one relay, in the order of UNITS."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024
    key = os.urandom(32)
    body = {"endpoint_name": "e", "multi_user": True, "link_public_key": key, "unseal_public_key": key}
    endpoint = ask(port, token, "POST", "/v3/endpoints", body)[0]["endpoint_id"]
    function = ask(port, token, "POST", "/v3/functions", {"function_name": "f", "function_code": b"f"})[0]
    tasks = {function["function_uuid"]: [b"x" * 100]}
    submit: tuple[str, str, object] = ("POST", f"/v3/endpoints/{endpoint}/submit", {"tasks": tasks})
    status: tuple[str, str, object] = ("GET", f"/v2/endpoints/{endpoint}/status", None)
    used, times = [], []
    for what in (submit, status):
        ask(port, token, *what, 200)
        before = cpu_us(pid)
        times.append(ask(port, token, *what, requests // 2)[1])
        used.append((cpu_us(pid) - before) / (requests // 2))
    threads = [threading.Thread(target=ask, args=(port, token, *submit, requests // 4)) for _ in range(4)]
    before = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = requests // 4 * 4 / (time.perf_counter() - before)
    return rate, statistics.median(times[0]) * 1e3, *used, resident


def leg(checkout: str, requests: int) -> tuple[float, ...]:
    """Return the figures of a new relay."""
    with tempfile.TemporaryDirectory() as directory:
        state, log = Path(directory, "state"), Path(directory, "log")
        with log.open("wb") as output:
            serve = command(checkout, state, "serve", "--port", "0", "--link-port", "0")
            process = subprocess.Popen(serve, stdout=output, stderr=output)
        try:
            while not (state / "relay.json").exists():
                if process.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.05)
            port = int(json.loads((state / "relay.json").read_text())["url"].rpartition(":")[2])
            user = subprocess.run(command(checkout, state, "user", "add", "a"), capture_output=True, check=True)
            return measure(process.pid, port, user.stdout.decode().strip(), requests)
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("checkouts", nargs="+", type=os.path.abspath)
    options.add_argument("--legs", type=int, default=5)
    options.add_argument("--requests", type=int, default=1500)
    asked = options.parse_args()
    found: dict[str, list[tuple[float, ...]]] = {checkout: [] for checkout in asked.checkouts}
    for number in range(asked.legs):
        for checkout in asked.checkouts if number % 2 else reversed(asked.checkouts):
            found[checkout].append(leg(checkout, asked.requests))
    base = [statistics.median(values) for values in zip(*found[asked.checkouts[0]], strict=True)]
    for checkout, legs in found.items():
        print(f"{checkout}:")
        for unit, first, values in zip(UNITS, base, zip(*legs, strict=True), strict=True):
            value = statistics.median(values)
            print(f"    {value:8.4g} {unit} ({value / first - 1:+.1%})")


if __name__ == "__main__":
    main()

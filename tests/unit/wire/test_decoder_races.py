"""Threads that decode for the first time, all at once: msgspec builds its data about a struct type without a lock.

A thread that arrives while another is building it follows a null pointer. Each case therefore runs in fresh
interpreters, in which nothing has been decoded before, with a switch of threads every microsecond. Before types were
built while their modules are imported, each of these cases ended with SIGSEGV in one of the first interpreters.
"""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

INTERPRETERS = 12
THREADS = 8

HARNESS = """
import sys, threading

{setup}

calls = [{calls}]
sys.setswitchinterval(1e-6)
gate = threading.Barrier({threads})
failed = []

def decode():
    gate.wait()
    for call in calls:
        try:
            call()
        except BaseException as error:
            failed.append(repr(error))

threads = [threading.Thread(target=decode) for _ in range({threads})]
for each in threads:
    each.start()
for each in threads:
    each.join()
sys.exit("; ".join(failed) or 0)
"""

SDK = """
import msgspec
from mep_sdk import Client
from mep_wire import api

e, g, t = (f"00000000-0000-4000-8000-00000000000{number}" for number in range(3))
ANSWERS = {
    "/v3/functions": api.FunctionAnswer(function_uuid="f"),
    f"/v3/endpoints/{e}/submit": api.SubmitAnswer(request_id="r", task_group_id=g, endpoint_id=e, tasks={}),
    f"/v2/tasks/{t}": api.TaskStatus(task_id=t, status="pending"),
    "/v2/batch_status": api.BatchStatusAnswer(results={t: api.TaskStatus(task_id=t, status="pending")}),
    f"/v2/taskgroup/{g}": api.TaskGroupAnswer(taskgroup_id=g, tasks=[]),
    "/v3/tasks/cancel": api.CancelAnswer(cancelled=[t]),
}
ANSWERS = {path: msgspec.msgpack.encode(answer) for path, answer in ANSWERS.items()}

class Answers:
    def get(self, path):
        return ANSWERS[path]

    def post(self, path, body, **_):
        return ANSWERS[path]

client = Client("http://127.0.0.1:1", "token")
client.transport = Answers()
"""
WIRE = """
import msgspec
from mep_wire import codec, messages
from mep_wire.identity import Identity, IdentitySet
from mep_wire.start_request import StartRequest, decode_start, encode_start

start = encode_start(StartRequest(
    endpoint_id="e", uep_id="u", identity_set=IdentitySet("a", (Identity("i", "alice"),)), user_endpoint_config={},
    user_runtime={}, issued_at=0.0, expires_at=0.0, nonce=b"", epoch=b"", sealed_join_token=b"", correlation_id="c",
))
ping = codec.encode(messages.Ping(sent_at=0.0))
"""
RELAY = """
import msgspec
from mep_wire import api
from relay.api import http

def body(kind, packed, **fields):
    made = kind(**fields)
    data = msgspec.msgpack.encode(made) if packed else msgspec.json.encode(made)
    return lambda: http.decode(data, kind, packed=packed)
"""
USER_ENDPOINT = """
import msgspec
from user_endpoint.resource_spec import shape_of
from user_endpoint.settings import settings_from

document = {"engine": {"type": "GlobusComputeEngine", "max_workers_per_node": 1}}
spec = msgspec.msgpack.encode({"num_nodes": 2})
"""
CASES = {
    "the SDK's client": (
        SDK,
        """
        lambda: client.endings([t]), lambda: client.get_task(t), lambda: client.get_task_group(g),
        lambda: client.cancel(t), lambda: client.submit(e, None),
        lambda: client.register_serialized(api.FunctionBody(function_name="f", function_code=b"")),
        """,
    ),
    "start requests": (WIRE, "lambda: decode_start(start), lambda: codec.decode_to_relay(ping)"),
    "the relay's bodies": (
        RELAY,
        """
        body(api.SubmitBody, True, tasks={}), body(api.SubmitBody, False, tasks={}),
        body(api.RegisterBody, False, endpoint_name="e"), body(api.CancelBody, True, task_ids=[]),
        """,
    ),
    "a user endpoint's settings": (USER_ENDPOINT, "lambda: settings_from(document), lambda: shape_of(spec)"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_to_decode_may_be_many_threads(case: str) -> None:
    setup, calls = CASES[case]
    script = HARNESS.format(setup=setup, calls=calls, threads=THREADS)
    for _ in range(INTERPRETERS):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != -signal.SIGSEGV, f"{case}: SIGSEGV"
        assert done.returncode == 0, done.stderr

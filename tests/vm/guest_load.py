"""A script of people's, run from the package mep-sdk: submits tasks for each person until a file appears.

`guest_load.py ENDPOINT_ID STOP OUT TOKENS`: TOKENS is JSON, person to token. Each result is one line of JSON in OUT.
A task that fails ends it with that task's exception.
"""

import contextlib
import json
import os
import sys
import threading

from mep_sdk import Executor

WAIT_S = 600


def task(number):
    import getpass

    return getpass.getuser(), number


def main(endpoint_id, stop, out, tokens):
    lock = threading.Lock()
    with contextlib.ExitStack() as stack, open(out, "a") as file:
        people = {}
        for person, token in json.loads(tokens).items():
            executor = Executor(endpoint_id=endpoint_id, relay_url="http://127.0.0.1:8650", token=token)
            people[person] = stack.enter_context(executor)

        def write(person, number, future):
            with lock:
                file.write(json.dumps({"person": person, "number": number, "result": future.result()}) + "\n")
                file.flush()

        number, pause, futures = 0, threading.Event(), []
        while not os.path.exists(stop):
            for person, executor in people.items():
                future = executor.submit(task, number)
                future.add_done_callback(lambda done, person=person, number=number: write(person, number, done))
                futures.append(future)
            number += 1
            pause.wait(2)
        for future in futures:
            future.result(timeout=WAIT_S)


main(*sys.argv[1:])

"""Ids of tasks."""

from __future__ import annotations

import os
import uuid

from mep_sdk.futures import TaskIds


def test_ids_are_version_7_and_in_order():
    ids = TaskIds()
    made = [ids() for _ in range(5000)]
    assert made == sorted(set(made))
    assert {(uuid.UUID(each).version, uuid.UUID(each).variant) for each in made} == {(7, uuid.RFC_4122)}
    assert all(str(uuid.UUID(each)) == each for each in made)


def test_a_forked_child_repeats_none():
    ids = TaskIds()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, ids().encode())
        os._exit(0)
    os.waitpid(child, 0)
    with os.fdopen(reader) as theirs:
        os.close(writer)
        assert theirs.read()[-17:] != ids()[-17:]

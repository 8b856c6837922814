"""The messages between client, interchange and pools beyond Parsl's own pickled dicts.

Each message is one frame of MessagePack. It begins with an array marker, which tells it from a pickle
(which begins with 0x80). The interchange hands tasks to pools in Parsl's form, with a Task in `buffer`, so that
Parsl's own worker pool can be used as well.
"""

from __future__ import annotations

import msgspec

from user_endpoint.engines.base import TaskOutput


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class HtexTask(msgspec.Struct, frozen=True, array_like=True):
    """One attempt at one task. `id` is the executor's number for the attempt, `task_id` is the relay's."""

    id: int
    task_id: str
    function_id: str
    function: bytes
    payload: bytes
    walltime_s: float
    max_result_bytes: int
    resource_spec: bytes = b""
    attempt: int = 1
    data_directory: str = ""
    """Where a worker without a run directory of its own puts large results."""


class Result(msgspec.Struct, frozen=True, array_like=True):
    """How a task ended, as in mep_wire.messages.ResultItem."""

    id: int
    code: str
    text: str
    payload: bytes
    started_at: float
    ended_at: float


class Queue(_Message, frozen=True):
    """Client to interchange: run these. Each is its number, an encoded Task, which the interchange does not open,
    its walltime in seconds (0: none) and its priority."""

    tasks: list[tuple[int, bytes, float, int]]


class Cancel(_Message, frozen=True):
    """Client to interchange to pools: end these."""

    ids: list[int]


class Drain(_Message, frozen=True):
    """Client to interchange to pools: return tasks that have not started, and take no others."""


class BlockEnded(_Message, frozen=True):
    """Client to interchange: the job of this block has ended, whatever its nodes last said."""

    block_id: str


class Leave(_Message, frozen=True):
    """Client to interchange to pools: end now."""


class WorkerReport(_Message, frozen=True):
    """Pool to interchange to client: the changes in tasks since the last report."""

    started: list[int] = []
    results: list[Result] = []
    returned: list[int] = []
    """Not started, and given back."""
    lost: list[int] = []
    """Gone with their node."""
    leaving: bool = False
    """The node is being ended by its scheduler: this is the last report of its pool."""
    block_id: str = ""
    """The pool's."""
    pool: str = ""
    """The pool that had the lost tasks: the names of its workers' start journals begin with this."""
    output: list[TaskOutput] = []
    """What tasks print, by the executor's numbers."""


class Registered(_Message, frozen=True):
    """Interchange to client: a node of this block has registered its workers."""

    block_id: str
    workers: int
    left_s: float | None = None
    """Seconds until the block ends, where that is known."""
    python: str = ""
    """Its workers' Python, as in 3.12.1."""


ToInterchange = Queue | Cancel | Drain | BlockEnded | Leave
ToPool = Cancel | Drain | Leave
ToClient = WorkerReport | Registered

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_task = msgspec.msgpack.Decoder(HtexTask).decode
decode_result = msgspec.msgpack.Decoder(Result).decode
decode_report = msgspec.msgpack.Decoder(WorkerReport).decode
decode_to_interchange = msgspec.msgpack.Decoder(ToInterchange).decode
decode_to_pool = msgspec.msgpack.Decoder(ToPool).decode
decode_to_client = msgspec.msgpack.Decoder(ToClient).decode


def is_ours(frame: bytes) -> bool:
    """Tell a message of this module from a pickle."""
    return frame[:1] != b"\x80"

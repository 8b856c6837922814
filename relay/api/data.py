"""Pieces of data by reference over HTTP: limits, upload, download, and which of them are here.

A piece is the person's own. Another person's is not found, though the digest may be known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mep_wire.api import DataLimits, PieceAnswer, PiecesAnswer, PiecesBody
from mep_wire.errors import BodyInvalid, DataNotFound
from mep_wire.limits import DATA_PIECE_BYTES, MAX_PIECES
from relay.api.context import ApiContext
from relay.api.http import Request
from relay.dispatch.data_pieces import KEEP_S, raw_digest

MAX_ASKED = 4096
"""Digests in one question."""
MAX_NAMED = 4 * MAX_PIECES
"""Digests in one submission, those of each task counted: all are looked up and stored in one transaction."""


async def limits(service: ApiContext, request: Request) -> DataLimits:
    """GET /v3/data."""
    return DataLimits(
        max_payload_bytes=service.limits.payload_bytes,
        max_data_bytes=service.dispatcher.data.most_bytes,
        piece_bytes=DATA_PIECE_BYTES,
        keep_s=KEEP_S,
    )


async def missing(service: ApiContext, request: Request) -> PiecesAnswer:
    """POST /v3/data/missing."""
    body: PiecesBody = request.body
    if len(body.digests) > MAX_ASKED:
        raise BodyInvalid(reason=f"digests: at most {MAX_ASKED}")
    asked = {_digest(text): text for text in body.digests}
    found = await service.dispatcher.data.keep(request.caller.account_id, list(asked))
    return PiecesAnswer(missing=[text for digest, text in asked.items() if digest not in found])


async def store(service: ApiContext, request: Request) -> PieceAnswer:
    """PUT /v3/data/DIGEST."""
    data: bytes = request.body
    await service.dispatcher.data.store(request.caller.account_id, _digest(request.path[0]), data)
    return PieceAnswer(digest=request.path[0], size=len(data))


async def read(service: ApiContext, request: Request) -> bytes:
    """GET /v3/data/DIGEST."""
    try:
        digest = raw_digest(request.path[0])
    except ValueError as error:
        raise DataNotFound(digest=request.path[0]) from error
    return await service.dispatcher.data.read(request.caller.account_id, digest)


async def names(
    service: ApiContext, owner: str, pieces: Mapping[str, Sequence[str]] | None
) -> dict[str, tuple[str, ...]]:
    """Return the names of the chunks that the tasks of a submission need, by task id as it was written. Raises
    BodyInvalid, DataNotOffered, DataExpired, RelayUnavailable."""
    if not pieces:
        return {}
    if any(len(texts) > MAX_PIECES for texts in pieces.values()):
        raise BodyInvalid(reason=f"pieces: at most {MAX_PIECES} for a task")
    if sum(map(len, pieces.values())) > MAX_NAMED:
        raise BodyInvalid(reason=f"pieces: at most {MAX_NAMED} in a submission; send fewer tasks at once")
    asked = {text: _digest(text) for texts in pieces.values() for text in texts}
    if len(asked) > MAX_PIECES:
        raise BodyInvalid(reason=f"pieces: at most {MAX_PIECES} different ones in a submission")
    found = await service.dispatcher.data.names(owner, list(dict.fromkeys(asked.values())))
    return {task_id: tuple(dict.fromkeys(found[asked[text]] for text in texts)) for task_id, texts in pieces.items()}


def _digest(text: str) -> bytes:
    try:
        return raw_digest(text)
    except ValueError as error:
        raise BodyInvalid(reason="a digest: expected the 64 hexadecimal digits of a SHA-256") from error

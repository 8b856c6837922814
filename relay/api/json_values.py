"""Normalises free-form values of bodies (configurations, metadata, schemas) to JSON values of a bounded size.

MessagePack has values that JSON lacks (bytes, keys that aren't strings, not-a-number), and JSON some that MessagePack
lacks (whole numbers of any size). Only values that both can express are stored, compared, signed and sent on.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mep_wire.errors import BodyInvalid, PayloadTooLarge
from mep_wire.ids import canonical_json
from mep_wire.user_values import unusable_texts


def to_json_value(value: dict[str, Any] | None, name: str, limit: int) -> dict[str, Any]:
    """Return `value` (an empty dictionary for None) as it comes back from canonical JSON.

    Raises PayloadTooLarge if that has more than `limit` bytes, BodyInvalid if JSON can't express the value.
    """
    if not value:
        return {}
    try:
        text = canonical_json(value)
        if len(text) > limit:
            raise PayloadTooLarge(what=name, size=len(text), limit=limit)
        made: dict[str, Any] = msgspec.json.decode(text)
        msgspec.msgpack.encode(made)
    except UnicodeEncodeError as error:
        path, problem = next(iter(unusable_texts(value)), ("", str(error)))
        raise BodyInvalid(reason=f"{name}: {path}: {problem}") from error
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise BodyInvalid(reason=f"{name}: {error}") from error
    return made

"""The record of a function: the contents of its frame, which tell how it travels without loading any of it."""

from __future__ import annotations

import msgspec

from mep_sdk import encoding
from mep_sdk.errors import DataCorrupt
from mep_wire.errors import FunctionUnloadable, MepError


class FunctionCode(msgspec.Struct, frozen=True, array_like=True):
    """One plain function."""

    name: str
    code: bytes
    """Marshalled code object."""
    defaults: bytes = b""
    """Frame of (defaults, keyword-only defaults)."""
    source: str = ""


class SerializedFunction(msgspec.Struct, frozen=True, array_like=True):
    """The contents of a function's frame. `codes` is set, or `pickled`; both where another Python cannot read the
    defaults of `codes`."""

    name: str
    module: str
    python: str
    codes: tuple[FunctionCode, ...] = ()
    """The function and those that it uses, for the Python named in `python`."""
    names: tuple[tuple[str, int], ...] = ()
    """Which of `codes` the code finds among its globals, and under which name."""
    imports: tuple[tuple[str, str], ...] = ()
    """Modules that it finds there: (name there, module), and submodules as ("", module)."""
    values: bytes = b""
    """Frame of a dict: plain values that it finds there."""
    pickled: tuple[bytes, ...] = ()
    """Frames of the whole callable, in the order in which to try them."""


_decoder = msgspec.msgpack.Decoder(SerializedFunction)


def read_record(data: bytes) -> SerializedFunction:
    """Return the record in a function's bytes, without loading any of it. Raises FunctionUnloadable."""
    try:
        kind, body = encoding.unframe(data, "function")
        if kind != encoding.FUNCTION:
            raise DataCorrupt(what="function", reason=f"its kind is {kind!r}")
        return _decoder.decode(body)
    except (MepError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        reason = error.text if isinstance(error, MepError) else f"its record is damaged: {error}"
        raise FunctionUnloadable(reason=reason) from error

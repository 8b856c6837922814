"""Builds msgspec's decoding data for a module's structs while that module is imported.

msgspec builds this on the first use of a type, without a lock, and publishes it before its fields are filled in
(StructInfo_Convert in msgspec 0.22's _core.c). A second thread that decodes at that moment follows a null pointer, and
the process ends with SIGSEGV. Python's import lock keeps other threads out until the module is whole.
"""

from __future__ import annotations

import sys

import msgspec


def build_struct_info(module: str) -> None:
    """Build it for every struct that `module` defines. Call it at the module's end, with its `__name__`."""
    for value in list(vars(sys.modules[module]).values()):
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module:
            msgspec.msgpack.Decoder(value)

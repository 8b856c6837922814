"""ShellFunction and ShellResult. Values fill the braces as they are, as these scripts expect.

MEP's own ShellFunction quotes them; `quote=True` asks for that here too.
"""

from __future__ import annotations

from typing import Any

import mep_sdk
from mep_sdk import ShellResult

__all__ = ("ShellFunction", "ShellResult")


class _Plain:
    """What makes a function of MEP's one of these: it is sent as MEP's own, which every worker has."""

    _sent_as: type

    def __init__(self, *args: Any, quote: bool = False, **options: Any) -> None:
        super().__init__(*args, quote=quote, **options)  # type: ignore[call-arg]  # MEP's class comes after this one

    def __reduce__(self) -> Any:
        own = type(self).__module__.startswith("globus_compute_sdk.")
        return (object.__new__, (self._sent_as,), vars(self)) if own else super().__reduce__()


class ShellFunction(_Plain, mep_sdk.ShellFunction):
    """MEP's ShellFunction, which does not quote."""

    _sent_as = mep_sdk.ShellFunction

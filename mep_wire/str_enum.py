"""enum.StrEnum, which Python 3.10 does not have: the SDK's wheel runs there too."""

from __future__ import annotations

import enum
import sys

if sys.version_info >= (3, 11):
    StrEnum = enum.StrEnum
else:

    class StrEnum(str, enum.Enum):
        """An enum of strings, each of which is shown as its value."""

        __str__ = str.__str__
        __format__ = str.__format__  # type: ignore[assignment]  # the same for an instance

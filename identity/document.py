"""Reading one mapping document: every key is taken once, with its type, and the other keys are refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger(__name__)
_ABSENT: Any = object()


class MappingDocumentInvalid(Exception):
    """The document is refused; the text names the key and the reason. `line` is known for a mistake of syntax."""

    def __init__(self, text: str, line: int = 0) -> None:
        self.line = line
        super().__init__(text)


class MappingDocument:
    """A mapping with keys that are taken one by one. Every `take_*` raises DocumentInvalid."""

    def __init__(self, value: Any, where: str = "", doubts: list[str] | None = None) -> None:
        """`doubts` collects what is warned of, besides the log."""
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise MappingDocumentInvalid(f"{where or 'the document'}: not a mapping with text keys")
        self._left = dict(value)
        self._where = f"{where}." if where else ""
        self.doubts = [] if doubts is None else doubts
        self._left.pop("comment", None)

    def refuse(self, key: str, reason: object) -> MappingDocumentInvalid:
        """Return the error that says why `key` is refused."""
        return MappingDocumentInvalid(f"{self._where}{key}: {reason}")

    def doubt(self, key: str, reason: str) -> None:
        """Warn of something that looks like a slip but may stand in a file that works. An empty `reason` is none."""
        if reason:
            self.doubts.append(f"{self._where}{key}: {reason}")
            _log.warning("mapping: %s%s: %s", self._where, key, reason)

    def end(self) -> None:
        """Refuse the document if it has keys that were not taken."""
        if self._left:
            raise self.refuse(min(self._left), "unknown key")

    def has(self, key: str) -> bool:
        """Return whether `key` is there and not taken yet."""
        return key in self._left

    def take(self, key: str, default: Any = _ABSENT) -> Any:
        """Return the value of `key` as it is, or `default`; without a default the key is required."""
        value = self._left.pop(key, default)
        if value is _ABSENT:
            raise self.refuse(key, "missing")
        return value

    def take_text(self, key: str, default: str = _ABSENT) -> str:
        """Return a text."""
        value = self.take(key, default)
        if not isinstance(value, str):
            raise self.refuse(key, "not a text")
        if not _is_unicode(value):
            raise self.refuse(key, "not valid Unicode")
        return value

    def take_flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, "neither true nor false")
        return value

    def take_choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        """Return one of `choices`."""
        value = self.take_text(key, default)
        if value not in choices:
            raise self.refuse(key, f"{value!r} is none of {', '.join(choices)}")
        return value

    def take_number(self, key: str, default: float, low: float, high: float) -> float:
        """Return a number between `low` and `high`."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.refuse(key, f"not a number from {low:g} to {high:g}")
        return float(value)

    def take_list(self, key: str) -> list[Any]:
        """Return a list that is not empty."""
        value = self.take(key)
        if not isinstance(value, list) or not value:
            raise self.refuse(key, "not a list with something in it")
        return value

    def take_texts(self, key: str) -> list[str]:
        """Return a list of texts that is not empty; a single text is a list of one."""
        value = self.take(key)
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise self.refuse(key, "neither a text nor a list of texts")
        if not all(map(_is_unicode, texts)):
            raise self.refuse(key, "not valid Unicode")
        return texts


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

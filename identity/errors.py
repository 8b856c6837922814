"""The errors of identity mapping. Their texts are for the administrator's log and for `mep map`.

Nothing here goes to the person: the mapper answers with a code of its own (mep_wire.errors) and keeps these
texts on the host.
"""

from __future__ import annotations

from pathlib import Path


class MappingError(Exception):
    """The base of every error that this package raises on purpose."""


class MappingFileInvalid(MappingError):
    """A mapping file is refused: `index` is the number of the document in it, None for the file as a whole.

    `line` is where the reason lies, from 1; 0 if that isn't known.
    """

    def __init__(self, file: Path, index: int | None, reason: str, line: int = 0) -> None:
        self.file, self.index, self.reason, self.line = file, index, reason, line
        source = f"{file}:{line}" if line else str(file)
        where = source if index is None else f"{source}: document {index}"
        super().__init__(f"{where}: {reason}")


class NoMapping(MappingError):
    """No mapper gives a local user for these identities."""


class NameRefused(NoMapping):
    """The mapper that decides gave something that cannot be a local user's name."""


class AmbiguousMapping(MappingError):
    """One rule gives several local users for one person's identities."""


class SourceUnavailable(MappingError):
    """A mapper failed (directory down, callout broken), and the chain does not go on past it."""


class SourceBusy(SourceUnavailable):
    """More people wait for a callout or a directory than may; to be tried again a little later.

    The chain never goes on past it, whatever `on_error` says: it isn't a failure of the site, and a person
    who makes others wait must not decide by which rule they are mapped.
    """


class AccountMissing(MappingError):
    """The host knows no account of that name."""

"""The one error of this package; everything else here may raise it."""

from __future__ import annotations


class SiteError(Exception):
    """A part of the site doesn't work, or may not be made: the text names it."""


class NameTaken(SiteError):
    """The name belongs to an account or group that this run did not make."""

"""The one error of this package; everything else here may raise it."""

from __future__ import annotations


class SiteError(Exception):
    """Something of the site does not do what it should, or may not be made: the text says what."""


class NameTaken(SiteError):
    """There is an account or a group of that name, made by another user."""

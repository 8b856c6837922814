"""Client."""

from mep_sdk import Client as Client

__all__ = ("Client",)

"""Batch, which Client.create_batch returns."""

from mep_sdk.batch import Batch as Batch

__all__ = ("Batch",)

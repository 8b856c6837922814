"""Chunks in a bucket of an S3-compatible storage; see `relay.store.chunks`. boto3 signs, tries again and times out.

It trusts the storage to keep the bytes and not to show them; their digest is checked when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from relay.store.chunks import ChunkMissing, ChunksUnavailable

T = TypeVar("T")

CONNECT_S, READ_S = 5, 30
ATTEMPTS = 3
MAX_AT_ONCE = 16


class S3Chunks:
    """A bucket, and a prefix of the names in it."""

    def __init__(self, bucket: str, prefix: str, *, endpoint: str, region: str, key_id: str, secret: str) -> None:
        self._bucket, self._prefix = bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint or None,
            region_name=region,
            aws_access_key_id=key_id or None,
            aws_secret_access_key=secret or None,
            config=Config(
                connect_timeout=CONNECT_S,
                read_timeout=READ_S,
                retries={"max_attempts": ATTEMPTS, "mode": "standard"},
                max_pool_connections=MAX_AT_ONCE,
            ),
        )

    def _do(self, call: Callable[[], T], name: str = "") -> T:
        try:
            return call()
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                raise ChunkMissing(name) from error
            raise ChunksUnavailable(str(error)) from error
        except BotoCoreError as error:
            raise ChunksUnavailable(str(error)) from error

    def put(self, name: str, data: bytes) -> None:
        """See Chunks."""
        self._do(lambda: self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data))

    def get(self, name: str) -> bytes:
        """See Chunks."""

        def read() -> bytes:
            data: bytes = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read()
            return data

        return self._do(read, name)

    def delete(self, name: str) -> None:
        """See Chunks."""
        self._do(lambda: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name))

    def names(self) -> Iterator[tuple[str, float]]:
        """See Chunks."""
        after: dict[str, str] = {}
        while True:
            found = self._do(
                lambda: self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, **after)  # noqa: B023
            )
            for one in found.get("Contents", []):
                yield one["Key"].removeprefix(self._prefix), one["LastModified"].timestamp()
            if not found.get("IsTruncated"):
                return
            after = {"ContinuationToken": found["NextContinuationToken"]}

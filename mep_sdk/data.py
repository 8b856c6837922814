"""Stores for large data beside the relay: a shared file system, or an object store with S3's interface.

A value is put once, and any number of tasks take the reference:

    store = FileStore("/scratch/me/mep")
    field = store.put(numpy.load("field.npy"))
    futures = [executor.submit(analyse, field, seed) for seed in range(1000)]

In the script, `field` is a small `Ref`. In a worker it is the value: loaded when it is first used, checked against its
SHA-256 before that. The same value is stored once, under the same key. Values stay until they are removed.

Stores travel inside references, without credentials: a worker reads with the rights that its own account has.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from mep_sdk import data_pickles, encoding
from mep_sdk.data_files import NEW_FILE
from mep_sdk.data_proxy import Lazy
from mep_sdk.errors import ArgumentsUnserializable, DataDamaged, DataMissing, StoreUnavailable
from mep_sdk.importable import NotSerializable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FileStore", "Ref", "S3Store", "Store", "ref_of", "value_of"]

T = TypeVar("T")

_BLOCK_BYTES = 1 << 20
_IN_MEMORY_BYTES = 8 * 1024 * 1024
"""What an S3Store holds in memory while it pickles; the rest goes into a temporary file."""


if TYPE_CHECKING:

    class _Anything(Any):  # type: ignore[misc]  # on purpose
        """To type checkers a reference fits where its value does: as an argument it becomes that."""

else:
    _Anything = object


class Ref(Generic[T], _Anything):  # noqa: PYI059 - object comes last
    """A reference to a value in a store. As an argument or result of a task it arrives as the value."""

    __slots__ = ("key", "size", "store", "tag")

    def __init__(self, store: Store, key: str, size: int, tag: str = "") -> None:
        self.store, self.key, self.size, self.tag = store, key, size, tag

    def get(self) -> T:
        """Return the value, loaded now. Raises DataMissing, DataDamaged, StoreUnavailable, DataUnreadable."""
        value: T = self.store.load(self)
        return value

    def remove(self) -> None:
        """Remove the value from its store, if it is there. Raises StoreUnavailable."""
        self.store.remove(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.store, self.key, self.size, self.tag)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and (self.key, self.store) == (other.key, other.store)

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"<Ref to {self.size} bytes in {self.store!r}: {self.key[:12]}>"


def _arrived(store: Store, key: str, size: int, tag: str) -> Any:
    return Lazy(Ref(store, key, size, tag))


def ref_of(value: Any) -> Ref[Any] | None:
    """Return the reference that a value came by; None for one that came whole."""
    return value if type(value) is Ref else object.__getattribute__(value, "_ref") if type(value) is Lazy else None


def value_of(value: Any) -> Any:
    """Return the value itself, loaded, of a reference or of what one has become; anything else as it is.

    For code that wants a certain type, as C extensions do. Raises as `Ref.get` does.
    """
    if type(value) is Ref:
        return value.get()
    return object.__getattribute__(value, "_load")() if type(value) is Lazy else value


class _Digesting:
    """A file that passes its data on, and knows its SHA-256."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self.size = file, hashlib.sha256(), 0
        file.seek(0)
        file.truncate()

    def write(self, data: Any) -> int:
        """Write bytes."""
        view = data_pickles.as_bytes(data)
        self._digest.update(view)
        self.size += view.nbytes
        for at in range(0, view.nbytes, _BLOCK_BYTES):
            self._file.write(view[at : at + _BLOCK_BYTES])
        return view.nbytes

    def end_value(self) -> None:
        """The value ends."""

    @property
    def key(self) -> str:
        """The SHA-256 of all, in hexadecimal digits."""
        return self._digest.hexdigest()


class Store(ABC):
    """A place for values, each under the SHA-256 of its bytes. Stores of the same place are equal."""

    def put(self, value: T) -> Ref[T]:
        """Store a value, unless it is there, and return its reference.

        Whatever pickles can be stored, classes and functions of the script included. Raises ArgumentsUnserializable,
        StoreUnavailable.
        """
        with self._open_fresh() as file:
            made: list[_Digesting] = []

            def digesting() -> _Digesting:
                made.append(_Digesting(file))
                return made[-1]

            try:
                _, tag = encoding.dump_into(digesting, [value], local_by_value=True)
                file.flush()
            except NotSerializable as error:
                raise ArgumentsUnserializable(name="Store.put", reason=str(error)) from error
            except OSError as error:
                raise self._unavailable(error) from error
            self._keep(file, made[-1].key, made[-1].size)
            return Ref(self, made[-1].key, made[-1].size, tag)

    def scatter(self, values: Iterable[T]) -> list[Ref[T]]:
        """Store each of these values; return their references, in order. Raises as `put` does."""
        return [self.put(value) for value in values]

    def load(self, ref: Ref[Any]) -> Any:
        """Return the value of a reference. Its bytes are checked before anything of them is loaded.

        Raises DataMissing, DataDamaged, StoreUnavailable, and DataUnreadable where the value cannot be made here.
        """
        data = self._read(ref.key)
        if hashlib.sha256(data).hexdigest() != ref.key:
            raise DataDamaged(key=ref.key, store=repr(self))
        return data_pickles.load_whole(data, ref.tag, "value", "here")

    @abstractmethod
    def exists(self, ref: Ref[Any]) -> bool:
        """Return whether a value is in the store. Raises StoreUnavailable."""

    @abstractmethod
    def remove(self, ref: Ref[Any]) -> None:
        """Remove a value, if it is there. References to it are of no use afterwards. Raises StoreUnavailable."""

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """Yield the keys of all values in the store. Raises StoreUnavailable."""

    @abstractmethod
    def _open_fresh(self) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Return a file for a new value."""

    @abstractmethod
    def _keep(self, file: IO[bytes], key: str, size: int) -> None:
        """Store the file's bytes. Raises StoreUnavailable."""

    @abstractmethod
    def _read(self, key: str) -> bytes:
        """Return the bytes of a value. Raises DataMissing, StoreUnavailable."""

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        reason = getattr(error, "strerror", None) or str(error)
        return StoreUnavailable(store=repr(self), reason=reason)


class FileStore(Store):
    """A directory that script and workers see by the same path, as on a cluster's shared file system.

    A file is written under another name, forced to the disk and renamed, so that its name always names all of it.
    Directories that the store makes have mode 0700 and files 0600. With `group`, a group's name, its members may read:
    0750 and 0640.
    """

    def __init__(self, directory: str | os.PathLike[str], *, group: str | None = None) -> None:
        """`directory` is made when something is put there. Raises ValueError for a relative path, and for a group that
        does not exist here."""
        self._directory = Path(directory)
        if not self._directory.is_absolute():
            raise ValueError(f"directory: an absolute path is needed, as a worker has another directory: {directory!r}")
        self._group, self._gid = group, _gid_of(group) if group is not None else -1

    def __reduce__(self) -> tuple[Any, ...]:
        return _file_store, (str(self._directory), self._group)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileStore) and self._directory == other._directory

    def __hash__(self) -> int:
        return hash(self._directory)

    def __repr__(self) -> str:
        return f"FileStore({str(self._directory)!r})"

    def exists(self, ref: Ref[Any]) -> bool:
        """See Store."""
        with self._reported():
            return self._path(ref.key).exists()

    def remove(self, ref: Ref[Any]) -> None:
        """See Store."""
        with self._reported():
            self._path(ref.key).unlink(missing_ok=True)

    def keys(self) -> Iterator[str]:
        """See Store."""
        with self._reported():
            for path in self._directory.glob("[0-9a-f][0-9a-f]/*"):
                if not path.name.startswith("."):
                    yield path.name

    @contextlib.contextmanager
    def _open_fresh(self) -> Iterator[IO[bytes]]:
        with self._reported():
            self._make(self._directory)
            path = self._directory / f".{secrets.token_hex(8)}"
            file = open(os.open(path, os.O_RDWR | NEW_FILE, 0o600), "wb")  # noqa: SIM115 - closed below
        try:
            with file:
                file.raw.name = str(path)  # type: ignore[attr-defined]  # the descriptor's number until now
                yield file
        finally:
            path.unlink(missing_ok=True)

    def _keep(self, file: IO[bytes], key: str, size: int) -> None:
        path = self._path(key)
        with self._reported():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size == size:
                    return
            self._make(path.parent)
            if self._gid >= 0 and sys.platform != "win32":
                os.fchown(file.fileno(), -1, self._gid)
                os.fchmod(file.fileno(), 0o640)
            os.fsync(file.fileno())
            Path(file.name).rename(path)

    def _read(self, key: str) -> bytes:
        with self._reported():
            try:
                return self._path(key).read_bytes()
            except FileNotFoundError as error:
                raise DataMissing(key=key, store=repr(self)) from error

    def _path(self, key: str) -> Path:
        return self._directory / key[:2] / key

    def _make(self, directory: Path) -> None:
        """Make a directory and those above it."""
        if directory.is_dir():
            return
        if directory != self._directory:
            self._make(directory.parent)
        elif not directory.parent.is_dir():
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            if self._gid >= 0 and sys.platform != "win32":
                os.chown(directory, -1, self._gid)
                directory.chmod(0o750)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._unavailable(error) from error


def _gid_of(group: str) -> int:
    """Return a group's number. Raises ValueError."""
    if sys.platform == "win32":
        raise ValueError("group: Windows has no such groups")
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ValueError(f"group: there is no group {group!r} on this machine") from None


def _file_store(directory: str, group: str | None) -> FileStore:
    """Make a store that has travelled: the group need not exist here to read."""
    try:
        return FileStore(directory, group=group)
    except ValueError:
        return FileStore(directory)


class S3Store(Store):
    """A bucket of an object store with S3's interface, by boto3: pip install boto3.

    Script and workers find credentials as boto3 does: in the environment, `~/.aws`, or from the machine. References
    carry none.
    """

    def __init__(
        self, bucket: str, *, prefix: str = "", endpoint_url: str | None = None, region: str | None = None
    ) -> None:
        """`prefix` begins the names of all objects; `endpoint_url` is the storage's address, where it is not AWS."""
        self._bucket, self._prefix = bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._endpoint_url, self._region = endpoint_url, region
        self._made: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _s3_store, (self._bucket, self._prefix, self._endpoint_url, self._region)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, S3Store) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash((self._bucket, self._prefix))

    def __repr__(self) -> str:
        return f"S3Store({self._bucket!r}, prefix={self._prefix!r}, endpoint_url={self._endpoint_url!r})"

    def exists(self, ref: Ref[Any]) -> bool:
        """See Store."""
        return self._do(lambda client: client.head_object(**self._named(ref.key))) is not None

    def remove(self, ref: Ref[Any]) -> None:
        """See Store."""
        self._do(lambda client: client.delete_object(**self._named(ref.key)))

    def keys(self) -> Iterator[str]:
        """See Store."""
        after: dict[str, str] = {}
        while True:
            found = self._do(
                lambda client: client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, **after)  # noqa: B023
            )
            for each in (found or {}).get("Contents", []):
                yield each["Key"].removeprefix(self._prefix)
            if not found or not found.get("IsTruncated"):
                return
            after = {"ContinuationToken": found["NextContinuationToken"]}

    def _open_fresh(self) -> contextlib.AbstractContextManager[IO[bytes]]:
        return tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)

    def _keep(self, file: IO[bytes], key: str, size: int) -> None:
        there = self._do(lambda client: client.head_object(**self._named(key)))
        if there is None or there["ContentLength"] != size:
            file.seek(0)
            self._do(lambda client: client.upload_fileobj(_Unclosed(file), self._bucket, self._prefix + key))

    def _read(self, key: str) -> bytes:
        data = self._do(lambda client: client.get_object(**self._named(key))["Body"].read())
        if data is None:
            raise DataMissing(key=key, store=repr(self))
        return bytes(data)

    def _named(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _do(self, call: Callable[[Any], Any]) -> Any:
        """Return what a call of the client returns; None where there is no such object. Raises StoreUnavailable."""
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise StoreUnavailable(store=repr(self), reason="boto3 is not installed: pip install boto3") from error
        try:
            if self._made is None:
                self._made = boto3.client("s3", endpoint_url=self._endpoint_url, region_name=self._region)
            return call(self._made)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                return None
            raise self._unavailable(error) from error
        except (BotoCoreError, OSError) as error:
            raise self._unavailable(error) from error


class _Unclosed(io.RawIOBase):
    """A file that boto3 reads, and does not close."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Return up to so many bytes."""
        return self._file.read(-1 if size is None else size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go elsewhere in the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place in the file."""
        return self._file.tell()


def _s3_store(bucket: str, prefix: str, endpoint_url: str | None, region: str | None) -> S3Store:
    return S3Store(bucket, prefix=prefix, endpoint_url=endpoint_url, region=region)

"""One suite over every store of mep_sdk.data: a directory, and an object store as moto plays it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mep_sdk.data import FileStore, Ref, S3Store, Store, ref_of, value_of
from mep_sdk.errors import ArgumentsUnserializable, DataDamaged, DataMissing, StoreUnavailable
from mep_sdk.serialize import load_arguments, serialize_arguments
from tests.support.s3 import KEY_ID, REGION, SECRET, storage

LARGE = os.urandom(9_000_000)
"""More than an S3Store pickles in memory."""


class Place:
    """A store, and how to change its bytes behind its back."""

    def __init__(self, store: Store, overwrite: Callable[[str, bytes], object]) -> None:
        self.store, self.overwrite = store, overwrite


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if request.param == "file":
        directory = tmp_path / "below" / "data"
        yield Place(FileStore(directory), lambda key, data: (directory / key[:2] / key).write_bytes(data))
        return
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with storage() as s3:
        client: Any = s3.client
        store = S3Store(s3.bucket, prefix="p/q", endpoint_url=s3.url, region=REGION)
        yield Place(store, lambda key, data: client.put_object(Bucket=s3.bucket, Key=f"p/q/{key}", Body=data))


@pytest.fixture
def store(place: Place) -> Store:
    return place.store


def test_a_value_comes_back_and_is_stored_once(store: Store) -> None:
    ref = store.put({"field": LARGE})
    assert ref.get() == {"field": LARGE} and ref.size > len(LARGE)
    assert store.exists(ref) and list(store.keys()) == [ref.key]
    assert store.put({"field": bytes(bytearray(LARGE))}) == ref
    assert list(store.keys()) == [ref.key]
    assert len(repr(ref)) < 200 and len(pickle.dumps(ref)) < 1000


def test_several_are_scattered(store: Store) -> None:
    refs = store.scatter(range(3))
    assert [ref.get() for ref in refs] == [0, 1, 2]
    assert len(set(refs)) == len(list(store.keys())) == 3


def test_classes_and_functions_of_a_script_can_be_stored(store: Store) -> None:
    class Field:
        def __init__(self, values: list[int]) -> None:
            self.values = values

        def total(self) -> int:
            return sum(self.values)

    assert store.put(Field([1, 2])).get().total() == 3
    assert store.put(lambda x: x + 1).get()(1) == 2


def test_what_was_removed_is_missing(store: Store) -> None:
    ref = store.put("value")
    ref.remove()
    ref.remove()
    assert not store.exists(ref) and not list(store.keys())
    with pytest.raises(DataMissing, match=ref.key):
        ref.get()


def test_other_bytes_are_not_loaded(place: Place) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, ("raise SystemExit",)

    ref = place.store.put("value")
    place.overwrite(ref.key, pickle.dumps(Harm()))
    with pytest.raises(DataDamaged, match="not loaded"):
        ref.get()


def test_what_does_not_pickle_is_refused(store: Store) -> None:
    with pytest.raises(ArgumentsUnserializable, match="generator"):
        store.put(x for x in "abc")
    assert not list(store.keys())


def test_an_argument_is_the_value_and_loaded_at_its_first_use(store: Store) -> None:
    ref = store.put([1, 2, 3])
    (arrived, among), _ = load_arguments(serialize_arguments((ref, {"deep": [ref]}), {}))
    assert ref_of(arrived) == ref and ref_of(ref) == ref and ref_of([1]) is None
    again = pickle.loads(pickle.dumps(arrived))
    ref.remove()  # so far nothing was loaded, not even to pickle it
    with pytest.raises(DataMissing):
        len(arrived)
    store.put([1, 2, 3])
    assert isinstance(arrived, list) and len(arrived) == 3 and arrived == [1, 2, 3] and arrived[1] == 2
    assert list(arrived) == [*arrived] == [1, 2, 3] and 2 in arrived and bool(arrived) and str(arrived) == "[1, 2, 3]"
    assert [*arrived, 4] == arrived + [4] == [1, 2, 3, 4] and [0] + arrived == [0, 1, 2, 3]  # noqa: RUF005
    arrived.append(9)
    assert value_of(arrived) == [1, 2, 3, 9] and type(value_of(arrived)) is list
    assert value_of(again) == [1, 2, 3] and among["deep"][0] is arrived


def test_operators_are_those_of_the_value(store: Store) -> None:
    (number, call), _ = load_arguments(serialize_arguments((store.put(7), store.put(max)), {}))
    assert (number + 1, 1 + number, 10 - number, number / 2, -number, number**2, divmod(number, 2)) == (
        *(8, 8, 3, 3.5, -7, 49),
        (3, 1),
    )
    assert number > 6 and number == 7 and hash(number) == hash(7) and f"{number:03}" == "007" and range(number)[-1] == 6
    assert call(1, 2) == 2


# --- each of them alone -------------------------------------------------------------------------------------


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        store = FileStore(tmp_path / "a" / "data")
        ref = store.put("value")
    finally:
        os.umask(old)
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {
        "a": 0o700,
        "a/data": 0o700,
        f"a/data/{ref.key[:2]}": 0o700,
        f"a/data/{ref.key[:2]}/{ref.key}": 0o600,
    }


def test_a_group_may_read_on_request(tmp_path: Path) -> None:
    import grp

    group = grp.getgrgid(os.getgid()).gr_name
    ref = FileStore(tmp_path / "data", group=group).put("value")
    path = tmp_path / "data" / ref.key[:2]
    assert [each.stat().st_mode & 0o777 for each in (path.parent, path, path / ref.key)] == [0o750, 0o750, 0o640]
    with pytest.raises(ValueError, match="no group"):
        FileStore(tmp_path, group="no-such-group")
    with pytest.raises(ValueError, match="absolute"):
        FileStore("data")


def test_a_directory_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="File exists"):
        FileStore(tmp_path / "file" / "data").put("value")
    assert not list(FileStore(tmp_path / "nowhere").keys())


def test_an_object_store_that_is_away_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    gone: Ref[Any] = Ref(S3Store("bucket", endpoint_url="http://127.0.0.1:9", region=REGION), "k" * 64, 1)
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:9"):
        gone.get()

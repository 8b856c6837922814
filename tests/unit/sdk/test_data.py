"""Values in parts: the same pieces for the same buffers, whole again, and no piece twice on its way."""

from __future__ import annotations

import array
import concurrent.futures
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mep_sdk import data_files, data_pickles, encoding
from mep_sdk.batch import checked_payload
from mep_sdk.data_transfer import IN_FLIGHT, DataTransfer
from mep_sdk.errors import DataCorrupt, DataUnreadable
from mep_sdk.serialize import load_arguments, serialize_function, wants_output
from mep_sdk.strategies import PICKLED, data_way
from mep_sdk.task_runner import run_task
from mep_wire import api
from mep_wire.data_frames import DataFrameInvalid, Part, encode_data, is_data, read_data, with_directory
from mep_wire.errors import DataUnavailable, PayloadTooLarge, RelayUnreachable, ResultTooLarge, RouteNotFound
from mep_wire.limits import DATA_PIECE_BYTES

BUFFER = os.urandom(9_000_000)
LIMIT = 1 << 20


class Kept(dict[bytes, bytes]):
    """Pieces in memory."""

    def keep(self, digest: bytes, data: memoryview) -> None:
        self[digest] = bytes(data)

    def read(self, parts: Sequence[Part]) -> Iterator[bytes]:
        for part in parts:
            yield self[part.digest] if part.digest else part.inline


def there_and_back(*values: object) -> list[Any]:
    kept = Kept()
    frame = data_pickles.dump(values, kept.keep, 1 << 40, local_by_value=True)
    assert all(len(piece) <= DATA_PIECE_BYTES for piece in kept.values())
    assert all(hashlib.sha256(piece).digest() == digest for digest, piece in kept.items())
    return data_pickles.load(frame, kept.read, "value", "here")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(BUFFER, id="bytes"),
        pytest.param(bytearray(BUFFER), id="bytearray"),
        pytest.param(array.array("d", range(500_000)), id="array"),
        pytest.param("ä" * 3_000_000, id="text"),
        pytest.param({str(n): [n, {"n": n}] for n in range(50_000)}, id="many small objects"),
        pytest.param([BUFFER[:1_500_000]] * 3, id="the same thrice"),
        pytest.param("small", id="small"),
    ],
)
def test_values_come_back(value: object) -> None:
    assert there_and_back(1, value, None) == [1, value, None]


def test_an_object_in_two_values_stays_one() -> None:
    shared = [BUFFER]
    first, second = there_and_back(shared, {"again": shared})
    assert second["again"] is first


def test_classes_of_the_script_travel() -> None:
    class Field:
        values = BUFFER

    (found,) = there_and_back(Field)
    assert found.values == BUFFER


@pytest.mark.parametrize("large", [BUFFER, {str(n): [n] for n in range(200_000)}], ids=["buffer", "small objects"])
def test_what_is_alike_has_the_same_pieces_beside_other_arguments(large: object) -> None:
    frames = [
        data_pickles.dump(data_files.call_values(args, kwargs), Kept().keep, 1 << 40, local_by_value=True)
        for args, kwargs in [((1, large), {}), ((2_000_000, large), {}), ((3, large), {"x": 1}), ((4, large, "y"), {})]
    ]
    assert frames[0].digests
    assert all(frame.digests == frames[0].digests for frame in frames)


def test_a_limit_stops_the_pickling_and_is_counted() -> None:
    kept = Kept()
    with pytest.raises(data_pickles.DataOverLimit):
        data_pickles.dump([BUFFER, BUFFER[1:]], kept.keep, 10_000_000, local_by_value=True)
    assert sum(map(len, kept.values())) <= 10_000_000
    assert data_pickles.size_of([BUFFER], local_by_value=True) in range(9_000_000, 9_000_100)


def test_a_failing_read_is_told_as_itself() -> None:
    kept = Kept()
    frame = data_pickles.dump([BUFFER], kept.keep, 1 << 40, local_by_value=True)

    def read(parts: Sequence[Part]) -> Iterator[bytes]:
        yield from kept.read(parts[:1])
        raise RelayUnreachable(url="there", reason="gone", waited_s=1)

    with pytest.raises(RelayUnreachable):
        data_pickles.load(frame, read, "value", "here")
    with pytest.raises(DataUnreadable):
        data_pickles.load(frame, lambda parts: kept.read(parts[:1]), "value", "here")
    with pytest.raises(DataCorrupt):
        data_pickles.load(msgspec.structs.replace(frame, kind=b"?"), kept.read, "value", "here")


# --- frames -------------------------------------------------------------------------------------------------


def payloads() -> list[bytes]:
    frame = data_pickles.dump(data_files.call_values((BUFFER,), {}), Kept().keep, 1 << 40, local_by_value=True)
    data = encode_data(frame, encoding.OUTPUT_WANTED)
    return [data, encoding.request(["pickle"], data), encoding.with_output(encode_data(frame), [b"out", b"err"])]


@pytest.mark.parametrize("payload", payloads(), ids=["bare", "with ways", "with output"])
def test_frames_are_found_within_their_wrappers(payload: bytes) -> None:
    frame = read_data(payload)
    assert is_data(payload) and frame is not None and frame.size > len(BUFFER) and len(frame.digests) == 3
    if payload[3:4] != encoding.OUTPUT:
        placed = with_directory(payload, frame, "/there")
        found = read_data(placed)
        assert found is not None and found.directory == "/there" and found.parts == frame.parts
        assert wants_output(placed) and encoding.ways_wanted(placed) == encoding.ways_wanted(payload)
        assert data_way(placed) == PICKLED  # and so a site that takes JSON alone refuses it


@pytest.mark.parametrize(
    "payload", [b"", b"MEP", b"MEPo", b"MEPr", b"MEPo" + b"\xff" * 12, encoding.dumps(1, local_by_value=True)]
)
def test_other_payloads_are_no_frames(payload: bytes) -> None:
    assert not is_data(payload) and read_data(payload) is None


def test_damaged_frames_are_refused() -> None:
    payload = payloads()[0]
    for damaged in (
        payload[:-20],
        payload[:30] + b"?" + payload[31:],
        b"MEPd",
        encode_data(  # type: ignore[arg-type]
            msgspec.structs.replace(read_data(payload), parts=[Part(5, b"short")])
        ),
    ):
        with pytest.raises(DataFrameInvalid):
            read_data(damaged)


# --- in a worker --------------------------------------------------------------------------------------------


def returns(value: Any) -> Any:
    return value


def test_a_worker_loads_arguments_and_leaves_a_large_result(tmp_path: Path) -> None:
    (tmp_path / "limit").write_text(str(20_000_000))
    kept = Kept()
    frame = data_pickles.dump(data_files.call_values((BUFFER,), {}), kept.keep, 1 << 40, local_by_value=True)
    for digest, piece in kept.items():
        (tmp_path / digest.hex()).write_bytes(piece)
    payload = encode_data(msgspec.structs.replace(frame, directory=str(tmp_path)))
    assert load_arguments(payload) == ((BUFFER,), {})
    code = serialize_function(returns)
    outcome = run_task(code, payload, max_result_bytes=LIMIT, data_directory=str(tmp_path))
    found = read_data(outcome.payload)
    assert (outcome.code, len(outcome.payload) < 1000) == ("", True) and found is not None
    for digest in found.digests:
        assert hashlib.sha256((tmp_path / digest.hex()).read_bytes()).digest() == digest
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.name not in map(bytes.hex, kept)} <= {
        0o600,
        (tmp_path / "limit").stat().st_mode & 0o777,
    }
    assert data_pickles.load(found, data_files._reader(str(tmp_path)), "result", "here") == [BUFFER]

    (tmp_path / "limit").write_text(str(5_000_000))
    over = run_task(code, payload, max_result_bytes=LIMIT, data_directory=str(tmp_path))
    assert over.code == ResultTooLarge.code and "9000" in over.text and "5000000" in over.text
    for directory in ("", str(tmp_path / "none")):
        assert run_task(code, payload, max_result_bytes=LIMIT, data_directory=directory).code == ResultTooLarge.code


def test_a_damaged_or_missing_file_is_no_argument(tmp_path: Path) -> None:
    kept = Kept()
    frame = data_pickles.dump(data_files.call_values((BUFFER[::-1],), {}), kept.keep, 1 << 40, local_by_value=True)
    payload = encode_data(msgspec.structs.replace(frame, directory=str(tmp_path)))
    with pytest.raises(DataUnavailable, match="cannot be read"):
        load_arguments(payload)
    for digest, piece in kept.items():
        (tmp_path / digest.hex()).write_bytes(piece)
    assert load_arguments(payload)
    path = tmp_path / frame.digests[0].hex()
    path.write_bytes(b"!" + path.read_bytes()[1:])
    with pytest.raises(DataUnavailable, match="damaged"):
        load_arguments(payload)


# --- to and from the relay ----------------------------------------------------------------------------------


class Relay:
    """A transport to a relay that keeps pieces in memory."""

    def __init__(self, *, offers: bool = True) -> None:
        self.pieces: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.at_once = self.most_at_once = 0
        self.offers, self.fails, self.away, self.asked = offers, 0, False, 0
        self._lock = threading.Lock()

    def _told(self) -> bytes:
        self.asked += 1
        if self.away:
            raise RelayUnreachable(url="there", reason="gone", waited_s=0)
        if not self.offers:
            raise RouteNotFound(method="GET", path="/v3/data")
        told = api.DataLimits(
            max_payload_bytes=1_000_000, max_data_bytes=20_000_000, piece_bytes=DATA_PIECE_BYTES, keep_s=86400
        )
        return msgspec.msgpack.encode(told)

    def post(self, _: str, body: api.PiecesBody, **__: Any) -> bytes:
        missing = [each for each in body.digests if each not in self.pieces]
        return msgspec.msgpack.encode(api.PiecesAnswer(missing=missing))

    def request(self, method: str, path: str, body: bytes = b"", **_: Any) -> bytes:
        digest = path.rpartition("/")[2]
        if digest == "data":
            return self._told()
        if method == "GET":
            return self.pieces[digest]
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.puts.append(digest)
            fails, self.fails = self.fails > 0, self.fails - 1
        if not fails:
            self.pieces[digest] = body
        with self._lock:
            self.at_once -= 1
        if fails:
            raise RelayUnreachable(url="there", reason="gone", waited_s=1)
        return b""


def transfer(relay: Relay, **options: Any) -> DataTransfer:
    return DataTransfer(relay, **options)  # type: ignore[arg-type]  # the methods that it calls


def test_a_piece_is_sent_once_from_many_threads_and_clients() -> None:
    relay, data = Relay(), os.urandom(15_000_000)
    mine = transfer(relay)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: mine.payload((number, data), {}, "f"), range(16)))
    transfer(relay).payload((data,), {}, "g")
    assert len(relay.puts) == len(set(relay.puts)) == 4
    assert mine.sent_bytes == len(data) and relay.most_at_once <= IN_FLIGHT


def test_a_result_is_fetched_in_order_and_checked() -> None:
    relay = Relay()
    mine, kept, value = transfer(relay), Kept(), {"large": os.urandom(17_000_000), "small": 1}
    payload = encode_data(data_pickles.dump([value], kept.keep, 1 << 40, local_by_value=False))
    relay.pieces = {digest.hex(): piece for digest, piece in kept.items()}
    assert mine.load_result(payload) == value
    digest = next(iter(relay.pieces))
    relay.pieces[digest] = b"!" + relay.pieces[digest][1:]
    with pytest.raises(DataCorrupt, match="another SHA-256"):
        mine.load_result(payload)


def test_a_transfer_that_broke_goes_on() -> None:
    relay, data = Relay(), os.urandom(15_000_000)
    relay.fails = 1
    mine = transfer(relay)
    with pytest.raises(RelayUnreachable):
        mine.payload((data,), {}, "f")
    mine.payload((data,), {}, "f")
    assert len(relay.puts) <= 5 and len(relay.pieces) == 4


@pytest.mark.parametrize(("offers", "limit"), [(True, "20000000"), (False, "10485760")])
def test_what_the_relay_does_not_take_says_size_limit_and_remedy(offers: bool, limit: str) -> None:
    with pytest.raises(PayloadTooLarge, match=rf"of f has 210000\d\d bytes, more than the {limit} .*mep_sdk.data"):
        transfer(Relay(offers=offers)).payload((bytes(21_000_000),), {}, "f")


def serialized(transfers: DataTransfer, size: int) -> bytes:
    return checked_payload((bytes(size),), {}, data=lambda: transfers)


def test_the_relays_limit_says_what_goes_by_reference() -> None:
    relay = Relay()
    mine = transfer(relay)
    assert not is_data(serialized(mine, 10_000)) and not relay.asked
    assert not is_data(serialized(mine, 900_000))
    for size in (1_100_000, 9_000_000, 11_000_000):
        assert is_data(serialized(mine, size))
    assert relay.asked == 1
    with pytest.raises(PayloadTooLarge, match="more than the 1000000 allowed"):
        checked_payload(("x" * 1_100_000,), {}, as_json=True, data=lambda: mine)


def test_a_relay_of_the_version_before_has_the_usual_limit() -> None:
    assert not is_data(serialized(transfer(Relay(offers=False)), 9_000_000))


def test_a_relay_that_is_away_holds_no_submission_up() -> None:
    relay, clock = Relay(), [0.0]
    relay.away = True
    mine = transfer(relay, clock=lambda: clock[0])
    for _ in range(5):
        assert not is_data(serialized(mine, 2_000_000))
    assert relay.asked == 1
    relay.away, clock[0] = False, 61.0
    assert is_data(serialized(mine, 2_000_000))

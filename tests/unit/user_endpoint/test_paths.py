"""The user endpoint's directory: made safely, or refused with a reason."""

from __future__ import annotations

import errno
import os
import pathlib
import uuid

import pytest

from mep_wire.messages import ResultItem
from user_endpoint.keeper_report import StartFailure
from user_endpoint.paths import make_paths, take_lock
from user_endpoint.run_directory import make_below
from user_endpoint.startup import open_log, open_spool

UEP = str(uuid.UUID(int=7))


def refusal(home: pathlib.Path, uep_id: str = UEP, state_dir: str | None = None) -> StartFailure:
    with pytest.raises(StartFailure) as caught:
        make_paths(uep_id, str(home), state_dir, "alice")
    return caught.value


def test_made_private_and_found_again(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        paths = make_paths(UEP, str(tmp_path), None, "alice")
        assert paths.root == str(tmp_path / ".mep" / "uep" / UEP)
        for part in (".mep", ".mep/uep", f".mep/uep/{UEP}", f".mep/uep/{UEP}/spool", f".mep/uep/{UEP}/run"):
            assert (tmp_path / part).stat().st_mode & 0o777 == 0o700


def test_moved_by_the_site(tmp_path: pathlib.Path) -> None:
    (tmp_path / "alice").mkdir()
    paths = make_paths(UEP, "/nonexistent", f"{tmp_path}/{{user}}", "alice")
    assert paths.root == str(tmp_path / "alice" / UEP)


@pytest.mark.parametrize("below", ["mep-{user}", "mep-{user}/state", "{user}"])
def test_what_the_site_calls_after_the_user_is_made_private(tmp_path: pathlib.Path, below: str) -> None:
    paths = make_paths(UEP, "/nonexistent", f"{tmp_path}/{below}", "alice")
    made = pathlib.Path(paths.root)
    assert made == tmp_path / below.replace("{user}", "alice") / UEP
    while (made := made.parent) != tmp_path:
        assert made.stat().st_mode & 0o777 == 0o700


@pytest.mark.root  # it makes another account's directory
@pytest.mark.parametrize("below", ["mep-{user}", "mep-{user}/state"])
@pytest.mark.parametrize("as_link", [False, True])
def test_a_place_of_the_users_name_that_another_account_made_is_refused(
    tmp_path: pathlib.Path, below: str, *, as_link: bool
) -> None:
    """In a sticky directory such as /var/tmp any account can be the first to take the name."""
    tmp_path.chmod(0o1777)
    taken, own = tmp_path / below.replace("{user}", "alice"), tmp_path / "own"
    own.mkdir()
    taken.parent.mkdir(exist_ok=True)
    if as_link:
        taken.symlink_to(own)
    else:
        taken.mkdir(mode=0o777)
    os.chown(taken, 12345, 12345, follow_symlinks=False)
    failure = refusal(pathlib.Path("/nonexistent"), state_dir=f"{tmp_path}/{below}")
    assert "belongs to somebody else" in failure.public
    assert "12345" in failure.detail
    assert not list(own.iterdir())


def test_a_link_of_the_users_own_or_of_roots_leads_to_their_place(tmp_path: pathlib.Path) -> None:
    (tmp_path / "volume3").mkdir()
    (tmp_path / "alice").symlink_to(tmp_path / "volume3")
    make_paths(UEP, "/nonexistent", f"{tmp_path}/{{user}}", "alice")
    assert (tmp_path / "volume3" / UEP).is_dir()


def test_what_an_automounter_mounts_is_not_made(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory refuses mkdir(2), of names that it mounts once they are looked for too."""
    root = pathlib.Path(make_paths(UEP, "/nonexistent", f"{tmp_path}/{{user}}", "alice").root)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "mkdir", refused)
    assert make_paths(UEP, "/nonexistent", f"{tmp_path}/{{user}}", "alice").root == str(root)


@pytest.mark.parametrize("below", ["", "/mep-{user}"])
def test_a_shared_directory_in_which_anybody_may_rename_is_refused(tmp_path: pathlib.Path, below: str) -> None:
    tmp_path.chmod(0o777)
    assert "not sticky" in refusal(pathlib.Path("/nonexistent"), state_dir=f"{tmp_path}{below}").public
    tmp_path.chmod(0o1777)
    assert make_paths(UEP, "/nonexistent", f"{tmp_path}{below}", "alice").root.endswith(UEP)


@pytest.mark.parametrize("at", [".mep", ".mep/uep", f".mep/uep/{UEP}", f".mep/uep/{UEP}/spool"])
def test_a_symbolic_link_is_refused_at_every_level(tmp_path: pathlib.Path, at: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / at).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / at).symlink_to(elsewhere)
    failure = refusal(tmp_path)
    assert failure.code == "HOME_UNUSABLE"
    assert "symbolic link" in failure.public
    assert not list(elsewhere.iterdir())


def test_writable_by_others_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / ".mep").mkdir()
    (tmp_path / ".mep").chmod(0o770)
    assert "can be written by others" in refusal(tmp_path).public


@pytest.mark.root  # it makes another account's directory
def test_somebody_elses_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / ".mep").mkdir()
    os.chown(tmp_path / ".mep", 12345, 12345)
    failure = refusal(tmp_path)
    assert "belongs to somebody else" in failure.public
    assert "12345" in failure.detail
    assert "12345" not in failure.public


def test_no_home(tmp_path: pathlib.Path) -> None:
    assert "No such file" in refusal(tmp_path / "none").public
    assert refusal(pathlib.Path("relative")).code == "HOME_UNUSABLE"


def test_a_file_in_the_way(tmp_path: pathlib.Path) -> None:
    (tmp_path / ".mep").write_text("")
    assert "Not a directory" in refusal(tmp_path).public


@pytest.mark.parametrize("uep_id", ["", "..", "../../etc", "x" * 36, UEP + "/..", UEP.upper() + "\n"])
def test_an_id_that_is_no_uuid_is_refused(tmp_path: pathlib.Path, uep_id: str) -> None:
    assert refusal(tmp_path, uep_id).code == "START_REQUEST_REFUSED"


def test_one_process_at_a_time(tmp_path: pathlib.Path) -> None:
    paths = make_paths(UEP, str(tmp_path), None, "alice")
    first = take_lock(paths)
    assert first is not None
    assert take_lock(paths) is None
    os.close(first)
    again = take_lock(paths)
    assert again is not None
    os.close(again)


def test_a_directory_that_is_put_in_its_place_gets_neither_log_nor_results(tmp_path: pathlib.Path) -> None:
    """An account that may write to the home directory may rename a checked directory."""
    paths = make_paths(UEP, str(tmp_path), None, "alice")
    kept, theirs = tmp_path / ".kept", tmp_path / "theirs"
    (tmp_path / ".mep").rename(kept)
    (theirs / "uep" / UEP / "spool").mkdir(parents=True)
    (tmp_path / ".mep").symlink_to(theirs)
    out, err = os.dup(1), os.dup(2)
    try:
        log = open_log(paths, debug=False)
        log.info("a line")
        spool = open_spool(paths, log)
        spool.add([ResultItem(7, "task", "", "", b"v", 1.0, 2.0)])
    finally:
        os.dup2(out, 1)
        os.dup2(err, 2)
    assert "a line" in (kept / "uep" / UEP / "endpoint.log").read_text()
    assert list((kept / "uep" / UEP / "spool").iterdir())
    assert not [path for path in theirs.rglob("*") if path.is_file()]


@pytest.mark.parametrize("below", ["begun/closed", "tasks_working_dir", "runner/packages"])
def test_directories_of_an_engine_need_the_run_directory(tmp_path: pathlib.Path, below: str) -> None:
    """If a link came into the way, none is made where it leads."""
    bait, run = tmp_path / "bait", tmp_path / "mep" / "uep" / "id" / "run"
    bait.mkdir()
    (tmp_path / "mep").symlink_to(bait)
    with pytest.raises(FileNotFoundError):
        make_below(str(run), f"{run}/{below}")
    assert not list(bait.iterdir())
    (tmp_path / "mep").unlink()
    run.mkdir(parents=True)
    for _ in range(2):
        make_below(str(run), f"{run}/{below}")
    assert (run / below).is_dir()


def test_a_working_directory_elsewhere_is_made_with_its_parents(tmp_path: pathlib.Path) -> None:
    make_below(str(tmp_path / "run"), str(tmp_path / "scratch" / "alice"))
    assert (tmp_path / "scratch" / "alice").is_dir()

"""Names, locations and trust of the administrator's files, under any account that runs the tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mep.boundary.errors import ConfigRefused
from mep.cli.endpoint_dirs import new_directory, replace_file, write_new
from mep.cli.exit_codes import CliFailed
from mep.cli.install_check import check_installation, first_closed
from mep.config.paths import check_name, endpoint_paths, find_roots, list_names
from mep.config.template_bundle import read_environment, read_schema, read_templates
from mep.config.template_files import check_inside, read_trusted, walk_tree

ME = os.geteuid()


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    path = tmp_path / "site"
    path.mkdir(mode=0o755)
    return path


def test_where_roots_and_peoples_files_are(tmp_path: Path) -> None:
    root = endpoint_paths(find_roots({}, privileged=True, home=tmp_path), "site")
    assert [str(p) for p in (root.config_dir, root.state_dir, root.runtime_dir)] == [
        "/etc/mep/site", "/var/lib/mep/site", "/run/mep/site",
    ]  # fmt: skip
    person = endpoint_paths(find_roots({}, privileged=False, home=tmp_path), "site")
    base = tmp_path / ".mep" / "site"
    assert (person.config_dir, person.state_dir, person.runtime_dir) == (base, base / "state", base / "run")


def test_the_roots_can_be_moved(tmp_path: Path) -> None:
    roots = find_roots({"MEP_ETC": "/x", "MEP_VAR": "/y", "MEP_RUN": "/z"}, privileged=True, home=tmp_path)
    assert [str(p) for p in (roots.etc, roots.var, roots.run)] == ["/x", "/y", "/z"]


@pytest.mark.parametrize("name", ["site", "Site-1", "a.b_c", "0", "x" * 63])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", ".x", "-x", "a b", "x" * 64, "é", "a\n", "a\0b", "uep", "relay"]
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(ConfigRefused):
        check_name(name)


def test_listing_takes_only_directories_with_a_config(tmp_path: Path) -> None:
    roots = find_roots({"MEP_ETC": str(tmp_path)}, privileged=True, home=tmp_path)
    for name in ("b", "a", ".hidden", "uep", "empty"):
        (tmp_path / name).mkdir()
        if name != "empty":
            (tmp_path / name / "config.yaml").touch()
    (tmp_path / "file").touch()
    assert list_names(roots) == ["a", "b"]
    assert list_names(find_roots({"MEP_ETC": "/nowhere"}, privileged=True, home=tmp_path)) == []


def test_a_file_is_read_whole_or_refused(etc: Path) -> None:
    path = etc / "file"
    path.write_text("text")
    assert read_trusted(path, cap=4, owner=ME) == "text"
    with pytest.raises(ConfigRefused, match="larger than 3 bytes"):
        read_trusted(path, cap=3, owner=ME)
    with pytest.raises(ConfigRefused, match="No such file"):
        read_trusted(etc / "absent", cap=3, owner=ME)
    with pytest.raises(ConfigRefused, match="not a regular file"):
        read_trusted(etc, cap=3, owner=ME)
    path.chmod(0o646)
    with pytest.raises(ConfigRefused, match="chmod go-w"):
        read_trusted(path, cap=4, owner=ME)


def test_a_loop_of_links_is_refused(etc: Path) -> None:
    (etc / "a").symlink_to(etc / "b")
    (etc / "b").symlink_to(etc / "a")
    with pytest.raises(ConfigRefused):
        read_trusted(etc / "a", cap=4, owner=ME)


def test_walking_leaves_out_what_editors_leave(etc: Path) -> None:
    for name in ("a.j2", "a.j2~", ".a.j2.swp", "#a.j2#", "a.j2.bak", "b.j2"):
        (etc / name).touch()
    (etc / ".git").mkdir()
    (etc / ".git" / "config.j2").touch()
    (etc / "sub").mkdir()
    (etc / "sub" / "c.j2").touch()
    assert [str(p.relative_to(etc)) for p in walk_tree(etc)] == ["a.j2", "b.j2", "sub/c.j2"]


def test_links_inside_are_followed_and_links_outside_are_not(etc: Path) -> None:
    (etc / "real.j2").write_text("x")
    (etc / "inside.j2").symlink_to("real.j2")
    check_inside(etc / "inside.j2", etc)
    (etc / "outside.j2").symlink_to("/etc/passwd")
    with pytest.raises(ConfigRefused, match="leaves"):
        check_inside(etc / "outside.j2", etc)


def test_in_the_endpoints_own_directory_only_templates_are_taken(etc: Path) -> None:
    for name in ("t.yaml", "part.j2", "identity_mapping.json", "password"):
        (etc / name).write_text(name)
    assert set(read_templates(etc / "t.yaml", etc, ME)) == {"t.yaml", "part.j2"}
    own = etc / "templates"
    own.mkdir()
    (own / "t.yaml").write_text("x")
    (own / "macros.txt").write_text("y")
    assert set(read_templates(own / "t.yaml", etc, ME)) == {"t.yaml", "macros.txt"}


def test_the_environment_is_text(etc: Path) -> None:
    path = etc / "user_environment.yaml"
    assert read_environment(path, ME) == {}
    path.write_text("A: 1\nB: two\nC: 3.5\n")
    assert read_environment(path, ME) == {"A": "1", "B": "two", "C": "3.5"}
    path.write_text("A: [1]\n")
    with pytest.raises(ConfigRefused, match="A: must be a text"):
        read_environment(path, ME)


def test_no_schema_is_no_schema_unless_it_was_asked_for(etc: Path) -> None:
    assert read_schema(etc / "absent", required=False, owner=ME) is None
    with pytest.raises(ConfigRefused, match="absent"):
        read_schema(etc / "absent", required=True, owner=ME)


def test_references_inside_a_schema_are_its_own(etc: Path) -> None:
    path = etc / "schema.json"
    path.write_text('{"$defs": {"n": {"type": "integer"}}, "properties": {"x": {"$ref": "#/$defs/n"}}}')
    assert read_schema(path, required=True, owner=ME)


def test_the_first_closed_directory_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "inner").mkdir(parents=True)
    interpreter = closed / "inner" / "python"
    interpreter.touch(0o755)
    link = tmp_path / "link"
    link.symlink_to(interpreter)
    above = [p for p in tmp_path.parents if not p.stat().st_mode & 0o001]
    expected = above[-1] if above else None
    tmp_path.chmod(0o755)
    assert first_closed(link) == expected
    if expected is None:
        closed.chmod(0o750)
        assert first_closed(link) == closed


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_directory(tmp_path / "made", mode=0o700) as staging:
        write_new(staging / "a", b"1", mode=0o600)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_directory(tmp_path / "made", mode=0o750) as staging:
        write_new(staging / "a", b"1", mode=0o640)
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "a").stat().st_mode & 0o777 == 0o640


def test_a_directory_with_something_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").touch()
    with pytest.raises(OSError, match="not empty"), new_directory(tmp_path / "made", mode=0o700):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_replacing_keeps_the_old_content_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"1", mode=0o644)
    with pytest.raises(TypeError):
        replace_file(path, "not bytes", mode=0o644)  # type: ignore[arg-type]
    assert path.read_bytes() == b"1"
    replace_file(path, b"2", mode=0o644)
    assert path.read_bytes() == b"2"


def test_an_interpreter_that_others_cannot_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = tmp_path / "python"
    interpreter.touch(0o700)
    interpreter.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    with pytest.raises(CliFailed, match=r"chmod o\+rX"):
        check_installation()

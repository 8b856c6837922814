"""A directory that does not care for case: the account has the spelling that NSS answers with, and is judged by it."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.cli import open_directory

MODULE = r"""
#include <errno.h>
#include <nss.h>
#include <pwd.h>
#include <string.h>
#include <strings.h>
enum nss_status _nss_meptestcase_getpwnam_r(const char *name, struct passwd *p, char *b, size_t n, int *e) {
    if (strcasecmp(name, "meptest-case") != 0) { *e = ENOENT; return NSS_STATUS_NOTFOUND; }
    if (n < 128) { *e = ERANGE; return NSS_STATUS_TRYAGAIN; }
    strcpy(b, "meptest-case"); strcpy(b + 32, "x"); strcpy(b + 40, ""); strcpy(b + 48, "/nonexistent");
    strcpy(b + 80, "/bin/sh");
    p->pw_name = b; p->pw_passwd = b + 32; p->pw_gecos = b + 40; p->pw_dir = b + 48; p->pw_shell = b + 80;
    p->pw_uid = 29999; p->pw_gid = 29999;
    return NSS_STATUS_SUCCESS;
}
enum nss_status _nss_meptestcase_initgroups_dyn(const char *user, gid_t group, long int *start, long int *size,
                                                gid_t **groups, long int limit, int *e) {
    /* The group of whoever asks with the right spelling: another spelling has none. */
    if (strcmp(user, "meptest-case") != 0 || *start >= *size) return NSS_STATUS_NOTFOUND;
    (*groups)[(*start)++] = 29998;
    return NSS_STATUS_SUCCESS;
}
"""


@pytest.fixture
def directory() -> Iterator[pathlib.Path]:
    """A directory with the module, a configuration that uses it, and a mapping to the other spelling."""
    with open_directory() as directory:
        _fill(directory)
        yield directory


def _fill(directory: pathlib.Path) -> None:
    (directory / "module.c").write_text(MODULE)
    library = directory / "libnss_meptestcase.so.2"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(directory / "module.c")], check=True)
    (directory / "nsswitch.conf").write_text("passwd: files meptestcase\ngroup: files meptestcase\nshadow: files\n")
    rule = {"source": "{username}", "match": "case@example.edu", "output": "MepTest-Case"}
    document = {"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": [rule]}
    (directory / "mapping.json").write_text(json.dumps([document]))
    for name in ("mapping.json", "nsswitch.conf", library.name):
        (directory / name).chmod(0o755)


def in_directory(directory: pathlib.Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run `command` on a host that takes accounts from the module too."""
    mount = f'mount --bind {directory}/nsswitch.conf /etc/nsswitch.conf && exec "$@"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", *command],
        env={**os.environ, "LD_LIBRARY_PATH": str(directory)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_account_has_the_spelling_of_nss_not_of_the_mapping(directory: pathlib.Path) -> None:
    program = (
        "from identity.account import resolve; from mep.root.account.lookup import lookup\n"
        "for find in (resolve, lookup):\n"
        "    one = find('MepTest-Case'); print(one.name, one.uid, sorted(map(str, one.groups)))"
    )
    done = in_directory(directory, sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("meptest-case 29999")
    assert second == "meptest-case 29999 ['29998', '29999']"
    assert "29998" in first, "the groups are those of the right spelling"


def test_mep_map_shows_both_spellings_and_judges_the_one_of_nss(directory: pathlib.Path) -> None:
    arguments = ("-I", "-m", "mep.cli", "map", "--file", str(directory / "mapping.json"))
    done = in_directory(directory, sys.executable, *arguments, "--json", "--identity", "case@example.edu")
    value = json.loads(done.stdout)
    assert value["user"] == "MepTest-Case"
    assert value["account"]["name"] == "meptest-case"
    assert value["account"]["uid"] == 29999

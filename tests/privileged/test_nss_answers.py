"""Answers of NSS of every size and kind, from a real module in nsswitch.conf: each errno is read and told apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root

_MODULE = r"""
#include <errno.h>
#include <grp.h>
#include <nss.h>
#include <pwd.h>
#include <shadow.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int calls;

/* big-N: an entry of N KiB. eintr: interrupted thrice, then found. The others: an errno with a status. */
static enum nss_status answer(const char *name, size_t n, int *e) {
    if (!strncmp(name, "in-", 3) && n) return NSS_STATUS_SUCCESS;
    if (!strncmp(name, "big-", 4)) {
        if (n < (size_t) atol(name + 4) * 1024) { *e = ERANGE; return NSS_STATUS_TRYAGAIN; }
        return NSS_STATUS_SUCCESS;
    }
    if (!strcmp(name, "eintr")) {
        if (++calls <= 3) { *e = EINTR; return NSS_STATUS_TRYAGAIN; }
        return NSS_STATUS_SUCCESS;
    }
    if (!strcmp(name, "eagain")) { *e = EAGAIN; return NSS_STATUS_TRYAGAIN; }
    if (!strcmp(name, "emfile")) { *e = EMFILE; return NSS_STATUS_UNAVAIL; }
    if (!strcmp(name, "eio")) { *e = EIO; return NSS_STATUS_UNAVAIL; }
    if (!strcmp(name, "enoent")) { *e = ENOENT; return NSS_STATUS_UNAVAIL; }
    *e = ENOENT;
    return NSS_STATUS_NOTFOUND;
}
static char *kept(char *b, const char *name) { return strcpy(b, name); }
enum nss_status _nss_meptestany_getpwnam_r(const char *name, struct passwd *p, char *b, size_t n, int *e) {
    enum nss_status said = answer(name, n, e);
    if (said == NSS_STATUS_SUCCESS) {
        p->pw_name = kept(b, name); p->pw_passwd = p->pw_gecos = p->pw_dir = p->pw_shell = b + strlen(b);
        p->pw_uid = 4711; p->pw_gid = 4343;
    }
    return said;
}
enum nss_status _nss_meptestany_getgrnam_r(const char *name, struct group *g, char *b, size_t n, int *e) {
    enum nss_status said = answer(name, n, e);
    static char *members[] = {"one", "two", NULL};
    if (said == NSS_STATUS_SUCCESS) {
        g->gr_name = kept(b, name); g->gr_passwd = b + strlen(b); g->gr_gid = 4343; g->gr_mem = members;
    }
    return said;
}
enum nss_status _nss_meptestany_getspnam_r(const char *name, struct spwd *s, char *b, size_t n, int *e) {
    enum nss_status said = answer(name, n, e);
    if (said == NSS_STATUS_SUCCESS) {
        memset(s, 0xff, sizeof *s); s->sp_namp = kept(b, name); s->sp_pwdp = b + strlen(b);
    }
    return said;
}
/* The group 4343 has the name "eintr". in-X: an account that answers X when asked for its groups. */
enum nss_status _nss_meptestany_initgroups_dyn(
    const char *name, gid_t primary, long *start, long *size, gid_t **groups, long limit, int *e
) {
    (void) primary; (void) limit;
    if (!strncmp(name, "in-", 3) && strcmp(name, "in-fine")) return answer(name + 3, 0, e);
    while (*start >= *size) *groups = realloc(*groups, (*size = *size * 2 + 1) * sizeof **groups);
    (*groups)[(*start)++] = 4343;
    return NSS_STATUS_SUCCESS;
}
"""
_BIND = 'mount --bind "$0" /etc/nsswitch.conf && exec "$@"'
_FIND = {
    "passwd": "nss_database.passwd_by_name",
    "group": "nss_database.group_by_name",
    "shadow": "shadow.read",
}
_SCRIPT = """
import json, sys
from mep.boundary import nss_database
from mep.root.account import nss, shadow
database, name = sys.argv[1:]
try:
    found = {find}(name)
    said = "found" if found is not None else "none"
except OSError as error:
    said = f"{{error.errno}} {{error.strerror}}"
print(json.dumps([said, nss.silent(database, name)]))
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the module, and of the nsswitch.conf that names it."""
    made = tmp_path_factory.mktemp("nss")
    words = ["cc", "-x", "c", "-shared", "-fPIC", "-o", str(made / "libnss_meptestany.so.2"), "-"]
    subprocess.run(words, input=_MODULE, text=True, check=True)
    lines = [f"{database}: files meptestany" for database in _FIND]
    (made / "nsswitch.conf").write_text("\n".join(lines) + "\n")
    return made


def run(directory: Path, script: str, *words: str) -> Any:
    """Return what `script` prints, run with that NSS."""
    command = ["unshare", "--mount", "sh", "-c", _BIND, str(directory / "nsswitch.conf"), sys.executable, "-c", script]
    done = subprocess.run(
        [*command, *words], env={**os.environ, "LD_LIBRARY_PATH": str(directory)}, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("database", sorted(_FIND))
@pytest.mark.parametrize(
    ("name", "said", "silent"),
    [
        ("big-4", "found", []),
        ("big-63", "found", []),
        ("big-3000", "found", []),
        ("big-70000", "34 {} cannot be {}: its entry is larger than 64 MiB", []),
        ("eintr", "found", []),
        ("eagain", "11 {} cannot be {}: Resource temporarily unavailable", ["meptestany"]),
        ("emfile", "24 {} cannot be {}: Too many open files", ["meptestany (Too many open files)"]),
        ("eio", "5 {} cannot be {}: Input/output error", ["meptestany (Input/output error)"]),
        ("enoent", "none", ["meptestany"]),
        ("nothing", "none", []),
    ],
)
def test_each_answer(directory: Path, database: str, name: str, said: str, silent: list[str]) -> None:
    found, services = run(directory, _SCRIPT.format(find=_FIND[database]), database, name)
    if database == "shadow":
        words = (f"the shadow entry of {name}", "read")
        if name == "enoent":  # libc doesn't say; the service does
            said = f"11 the shadow entry of {name} cannot be read: meptestany does not answer"
    else:
        words = (f"the {'account' if database == 'passwd' else 'group'} '{name}'", "looked up")
    assert found == said.format(*words)
    assert services == silent


_POLICY = textwrap.dedent(
    """
    import json, sys
    from mep.boundary.resolved_config import Policy
    from mep.root.account.lookup import AccountRules, NotKnownNow, StartRefused, check_policy
    from mep.root.kernel.spawn import SpawnAccount
    key, name, gid = sys.argv[1:]
    account = SpawnAccount("meptest-x", 4711, int(gid), (), "/", "/bin/sh")
    try:
        check_policy(account, AccountRules(Policy(**{key: [name]}), (), (), None))
        said = ""
    except StartRefused as refusal:
        said = ("later: " if isinstance(refusal, NotKnownNow) else "never: ") + refusal.detail
    print(json.dumps(said))
    """
)


@pytest.mark.parametrize(
    ("key", "name", "gid", "said"),
    [
        ("denied_groups", "big-3000", 4711, ""),
        ("denied_groups", "big-3000", 4343, "never: meptest-x is in the denied group big-3000"),
        ("allowed_groups", "big-3000", 4343, ""),
        ("denied_groups", "emfile", 4711, "later: the group 'emfile' cannot be looked up: Too many open files"),
        ("allowed_groups", "eio", 4711, "later: the group 'eio' cannot be looked up: Input/output error"),
        ("denied_users", "big-3000", 4711, "never: meptest-x is in denied_users, as big-3000, with the same uid"),
        ("denied_users", "emfile", 4711, "later: the account 'emfile' cannot be looked up: Too many open files"),
        ("denied_users", "enoent", 4711, "later: which uid enoent has is not known: meptestany does not answer"),
        ("denied_users", "nothing", 4711, ""),
        ("denied_groups", "enoent", 4711, "later: who is in enoent is not known: meptestany does not answer"),
    ],
)
def test_a_policy_with_such_a_group(directory: Path, key: str, name: str, gid: int, said: str) -> None:
    """A group with many members refuses nobody else; one that can't be read now admits nobody."""
    assert run(directory, _POLICY, key, name, str(gid)) == said


_ADMISSION = textwrap.dedent(
    """
    import json, sys
    from mep.boundary.resolved_config import Policy
    from mep.root.account.lookup import AccountRules, NotKnownNow, StartRefused, check_policy, lookup
    name, policy = sys.argv[1], json.loads(sys.argv[2])
    try:
        account = lookup(name)
        check_policy(account, AccountRules(Policy(**policy), (), (), None))
        said = f"{account.groups}"
    except StartRefused as refusal:
        said = ("later: " if isinstance(refusal, NotKnownNow) else "never: ") + refusal.detail
    print(json.dumps(said))
    """
)


@pytest.mark.parametrize("policy", [{}, {"denied_groups": ["eintr"]}, {"allowed_groups": ["eintr"]}])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("in-enoent", "meptestany"),
        ("in-eagain", "meptestany"),
        ("in-eio", "meptestany (Input/output error)"),
        ("in-emfile", "meptestany (Too many open files)"),
    ],
)
def test_groups_of_an_account_that_a_directory_does_not_say(
    directory: Path, policy: dict[str, object], name: str, reason: str
) -> None:
    """libc leaves them out: a denied group would be forgotten, and a member of an allowed one refused for good."""
    said = f"later: the groups of '{name}' are not known: {reason} does not answer"
    assert run(directory, _ADMISSION, name, json.dumps(policy)) == said


@pytest.mark.parametrize(
    ("name", "policy", "said"),
    [
        ("in-fine", {}, "(4343,)"),
        ("in-nothing", {}, "(4343,)"),  # the primary group
        ("in-fine", {"denied_groups": ["eintr"]}, "never: in-fine is in the denied group eintr"),
        (
            "in-fine",
            {"privileged_groups": ["enoent"]},
            "later: which gid enoent has is not known: meptestany does not answer",
        ),
        ("in-fine", {"privileged_groups": ["nothing"]}, "(4343,)"),
    ],
)
def test_groups_of_an_account_that_are_known(directory: Path, name: str, policy: dict[str, object], said: str) -> None:
    assert run(directory, _ADMISSION, name, json.dumps(policy)) == said


_HELPERS = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    from mep.boundary.errors import ConfigRefused
    from mep.cli.exit_codes import CliFailed
    from mep.cli.helper_accounts import _is_free
    from mep.cli.map_identities import Site, become_mapper
    from mep.config.system_accounts import system_account
    from mep.mapper.user_mapping import _rules
    name, said = sys.argv[2], []
    for step in (system_account, _is_free, lambda name: become_mapper(Site(Path("/x"), mapper_account=name))):
        try:
            said.append(str(step(name)))
        except (ConfigRefused, CliFailed) as error:
            said.append(str(error))
    said.append(sorted(_rules(name).mapping.owners))
    print(json.dumps(said))
    """
)


def test_commands_and_mapper_take_no_errno_for_a_missing_account(directory: Path) -> None:
    """Neither is a command offered that makes an account which exists, nor is anything mapped as root."""
    *said, trusted = run(directory, _HELPERS, "", "emfile")
    for one in said:
        assert "the account 'emfile' cannot be looked up: Too many open files" in one
    assert trusted == [], "root's mapping files alone"
    missing = run(directory, _HELPERS, "", "nothing")
    assert "useradd" in missing[0] and missing[1] == "True" and "there is no account nothing" in missing[2]

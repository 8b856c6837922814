"""Creates an endpoint's directories, each whole or not at all, with owners and modes set before it gets its name.

Used by configure and register. As root, the configuration is root's, and the mapper's group may also read the
mapping file.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from mep.cli.exit_codes import CliFailed
from mep.config.example import default_file
from mep.config.paths import CONFIG, FIVE_FILES, MAPPING, TEMPLATE, EndpointPaths


def write_new(path: Path, data: bytes, *, mode: int, owner: int = -1, group: int = -1) -> None:
    """Write a file that must not exist yet, durably. Raises FileExistsError, OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if owner >= 0 or group >= 0:
                os.fchown(descriptor, owner, group)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
    except OSError as error:  # write(2) names no file
        error.filename = os.fspath(path)
        raise


def replace_file(path: Path, data: bytes, *, mode: int) -> None:
    """Write a file whole or not at all, replacing an existing one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        write_new(temporary, data, mode=mode)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Sync the names in a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_parents(path: Path, *, privileged: bool) -> None:
    """Create a directory and those above it: readable by all if run as root, private otherwise."""
    for one in [*reversed(path.parents), path]:
        if not one.exists():
            with contextlib.suppress(FileExistsError):
                one.mkdir(mode=0o755 if privileged else 0o700)
                one.chmod(0o755 if privileged else 0o700)


@contextlib.contextmanager
def new_directory(path: Path, *, mode: int) -> Iterator[Path]:
    """Yield a directory to fill. At the end it is renamed to `path`, or removed if filling fails.

    `path` may exist if it is empty. Raises OSError.
    """
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield staging
        staging.chmod(mode)
        sync_directory(staging)
        staging.rename(path)
        sync_directory(path.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def refuse_existing(where: EndpointPaths) -> None:
    """Raise CliFailed if one of the endpoint's five files exists."""
    existing = [name for name in FIVE_FILES if (where.config_dir / name).exists()]
    if existing:
        raise CliFailed(
            f"{where.config_dir} already has {', '.join(existing)}; nothing was changed. "
            f"To use these files: mep register {where.name}. To begin anew: mep delete {where.name} first."
        )


def write_five_files(
    where: EndpointPaths, config: str, given: Mapping[str, str], *, mapper: pwd.struct_passwd | None
) -> None:
    """Write the endpoint's five files, all or none: those of `given` by name, and the default ones of the others.

    `given` may also have files in directories, which templates include. As root, the group of `mapper` may also read
    the mapping file. Raises CliFailed if one of the files exists.
    """
    refuse_existing(where)
    make_parents(where.config_dir.parent, privileged=where.privileged)
    files = {**given, CONFIG: config}
    template = any(name not in FIVE_FILES for name in given)  # config.yaml then names it
    missing = [name for name in FIVE_FILES if name not in files and not (template and name == TEMPLATE)]
    files |= {name: default_file(name) for name in missing}
    try:
        with new_directory(where.config_dir, mode=0o755 if where.privileged else 0o700) as staging:
            _fill(staging, files, mapper)
    except OSError as error:
        raise CliFailed(f"{error.filename or where.config_dir}: {error.strerror}") from None


def _fill(staging: Path, files: Mapping[str, str], mapper: pwd.struct_passwd | None) -> None:
    for name, text in files.items():
        (staging / name).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if mapper is not None and name == MAPPING:
            write_new(staging / name, text.encode(), mode=0o640, group=mapper.pw_gid)
        else:
            write_new(staging / name, text.encode(), mode=0o600)

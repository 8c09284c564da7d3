"""Atomic writes of files and folders, and records by which damage is found.

Comes in: bytes and paths. Goes out: `FileRecord`s for a manifest, folders swapped into place. Guaranteed: a
writer that is killed leaves the previous content; of two writers of one folder, one wins.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import FxhloError

CHUNK = 1 << 24
SOURCES = (".py", ".cc", ".h")
ABANDONED_AFTER = 60.0
"""Seconds after which a temporary folder that nobody has locked counts as left by a killed process."""


@dataclass(frozen=True)
class FileRecord:
    """A file as it was written. `file` is relative to its folder, or absolute where it lies outside.

    mtime_ns: when it was last changed; a file that still has size and time is taken to be the one that was written,
    unless a digest is asked for. sha256: None where none was taken.
    """

    file: str
    bytes: int
    sha256: str | None = None
    mtime_ns: int | None = None

    def path(self, root: Path) -> Path:
        return root / self.file

    def damage(self, root: Path, *, digest: bool | None = None) -> str | None:
        """None, or what is wrong with the file. digest: take it always, never, or (None) where the time differs."""
        path = self.path(root)
        try:
            stat = path.stat()
        except FileNotFoundError:
            return "it is missing"
        except OSError as problem:
            return f"it cannot be read: {problem.strerror}"
        if stat.st_size != self.bytes:
            return f"it has {stat.st_size} bytes instead of {self.bytes}"
        same_time = self.mtime_ns is not None and stat.st_mtime_ns == self.mtime_ns
        if digest is False or (digest is None and same_time):
            return None
        if self.sha256 is None:
            return None if same_time else "it was changed after it was recorded"
        try:
            return None if digest_of(path) == self.sha256 else "its content is not what was written"
        except OSError as problem:
            return f"it cannot be read: {problem.strerror}"

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any], *, outside: bool = False) -> FileRecord:
        """Raises KeyError, TypeError or ValueError where `data` is no record, or leaves the folder."""
        record = FileRecord(**data)
        if (
            not isinstance(record.file, str)
            or type(record.bytes) is not int
            or not isinstance(record.sha256, str | None)
        ):
            raise ValueError(f"{data} is no file record")
        pure = PurePosixPath(record.file)
        if not record.file or ".." in pure.parts or (pure.is_absolute() and not outside):
            raise ValueError(f"{record.file!r} leaves the folder")
        return record


def digest_of(path: Path) -> str:
    """sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sources_digest(paths: Iterable[Path], root: Path) -> str:
    """A digest of these files, and of the Python and C++ sources below these folders, names relative to `root` included."""
    digest = hashlib.sha256()
    for path in paths:
        below = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.suffix in SOURCES)
        for file in below:
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def record(path: Path, root: Path | None = None, *, digest: bool = True) -> FileRecord:
    """The record of an existing file; its name is relative to `root`, or absolute without one."""
    stat = path.stat()
    name = str(path.resolve()) if root is None else path.relative_to(root).as_posix()
    return FileRecord(name, stat.st_size, digest_of(path) if digest else None, stat.st_mtime_ns)


def write(path: Path, chunks: Iterable[bytes | memoryview], root: Path) -> FileRecord:
    """Writes a new file and syncs it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    stat = path.stat()
    return FileRecord(path.relative_to(root).as_posix(), stat.st_size, digest.hexdigest(), stat.st_mtime_ns)


def store(root: Path, folder: str, suffix: str, data: bytes) -> FileRecord:
    """Writes `data` under a name made from its digest, atomically; a file that is there already is kept."""
    sha256 = hashlib.sha256(data).hexdigest()
    final = root / folder / f"{sha256[:24]}{suffix}"
    if not final.exists() or final.stat().st_size != len(data):
        temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
        try:
            write(temporary, [data], root)
            os.replace(temporary, final)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return FileRecord(final.relative_to(root).as_posix(), len(data), sha256, final.stat().st_mtime_ns)


def replace_file(path: Path, data: bytes) -> None:
    """Replaces a file's content atomically."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write(temporary, [data], path.parent)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that replaces it when the block ends, and is deleted where the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, path.name)
    temporary = path.parent / f".{path.name}.writing-{secrets.token_hex(6)}"
    temporary.mkdir()
    handle = os.open(temporary, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: then `sweep` cannot lock this folder and leaves it
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield temporary
        for folder in [temporary, *(entry for entry in temporary.rglob("*") if entry.is_dir())]:
            sync_folder(folder)
        swap(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(handle)


def swap(new: Path, path: Path) -> None:
    """Moves the folder `new` to `path` in one step, so that `path` is never missing, and deletes the old one."""
    for _ in range(100):
        try:
            os.rename(new, path)  # path is not there, or is an empty folder
            break
        except OSError as problem:
            if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            _exchange(new, path)
            break
        except FileNotFoundError:
            continue  # another process moved it away in between
    else:
        raise OSError(errno.EBUSY, "other processes keep replacing it", str(path))
    sync_folder(path.parent)
    if new.exists():
        shutil.rmtree(new, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Syncs a folder's names to the disk, on file systems that support it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def absolute(path: str | Path, kind: type[FxhloError]) -> Path:
    """`path` without links, relative parts and `~`. Raises `kind` for what cannot be a path."""
    try:
        found = Path(path).expanduser().resolve()
        if found.is_symlink():  # a circle: from Python 3.13 on resolve leaves it as it is
            os.stat(found)
        return found
    except (OSError, RuntimeError, ValueError) as problem:  # a circle of links, a null character, ~ of an unknown user
        raise kind(
            f"there can be no such path: {problem}", where=repr(str(path)), next_step="choose another path"
        ) from problem


@contextmanager
def explained(what: str, path: Path, kind: type[FxhloError]) -> Iterator[None]:
    """Turns OSError into `kind`, with a next step for the common ones."""
    try:
        yield
    except OSError as problem:
        steps = {
            errno.ENOSPC: "free some space on that disk, or choose another folder",
            errno.EDQUOT: "free some of the quota, or choose another folder",
            errno.EFBIG: "raise the limit on file sizes (ulimit -f), or choose another folder",
            errno.EACCES: "choose a folder that this user may write",
            errno.EPERM: "choose a folder that this user may write",
            errno.EROFS: "choose a folder on a disk that can be written",
            errno.EMFILE: "raise the limit on open files (ulimit -n)",
            errno.ENAMETOOLONG: "choose a shorter name",
        }
        reason = problem.strerror or str(problem)
        next_step = steps.get(problem.errno or 0)
        raise kind(f"{what}: {reason}", where=problem.filename or path, next_step=next_step) from problem


def _exchange(one: Path, other: Path) -> None:
    """Swaps two names (renameat2 with RENAME_EXCHANGE); where the file system cannot, moves one after the other."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2") and libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0:
        return
    code = ctypes.get_errno()
    if code == errno.ENOENT:
        raise FileNotFoundError(code, os.strerror(code), str(other))
    if code not in (0, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(code, os.strerror(code), str(other))
    old = other.with_name(f".{other.name}.old-{secrets.token_hex(6)}")
    os.rename(other, old)
    os.rename(one, other)
    shutil.rmtree(old, ignore_errors=True)


def sweep(parent: Path, name: str | None = None) -> None:
    """Deletes temporary folders of killed writers of `parent / name`, or of anything in `parent`: old ones without a lock."""
    pattern = f".{'*' if name is None else glob.escape(name)}.writing-*"
    for left in parent.glob(pattern):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime < ABANDONED_AFTER:
                continue
            handle = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)

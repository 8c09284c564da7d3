"""Cache: folders made once per key, shared between processes.

Comes in: a key (anything JSON has) and a function that fills a folder. Goes out: the folder's path. Guaranteed: of
several processes one builds and the others wait and reuse; an entry is there whole or not at all; a damaged one is
never handed out; one that a `Cache` has handed out is not collected as long as that `Cache` lives, in whatever process.

An entry never changes once built: additions (`Bundle.add_target`) belong under another key.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from . import files
from .errors import CacheError

logger = logging.getLogger(__name__)
RECORD = "entry.json"
CONTENT = "content"
LIMIT = "FXHLO_CACHE_GIB"
DEFAULT_GIB = 16.0


@dataclass(frozen=True)
class CacheEntry:
    """One entry: its key, its folder, its size in bytes, and when it was last asked for (seconds since 1970)."""

    key: Mapping[str, object]
    path: Path
    bytes: int
    used: float


class Cache:
    """The cache in `root`, or in `default_root`. The folder is made at the first `put`.

    max_bytes: after something was made, the entries that were not used for the longest time are deleted until the rest takes no more;
    None: `default_limit`. Raises CacheError where the environment names neither a folder nor a number.
    """

    def __init__(self, root: str | Path | None = None, max_bytes: int | None = None) -> None:
        self.root = Path(root).expanduser().absolute() if root is not None else default_root()
        self.max_bytes = default_limit() if max_bytes is None else max_bytes
        self._uses: dict[Path, _Use] = {}

    def get(self, key: Mapping[str, object]) -> Path | None:
        """The folder made for `key`; None where there is none, or it is damaged (which is logged as a warning)."""
        folder = self._folder(key)
        record = folder / RECORD
        try:
            listed = json.loads(record.read_bytes())["files"]
            damage = _damage(folder, [files.FileRecord.from_json(one) for one in listed])
        except FileNotFoundError:
            damage = "its record is missing" if folder.exists() else None
            if damage is None:
                return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
            damage = f"its record cannot be read: {problem}"
        if damage is not None:
            logger.warning("the cache entry %s is damaged and will be made again: %s", folder, damage)
            return None
        with suppress(OSError):  # a cache that this user may only read
            os.utime(record)
        return folder / CONTENT if self._use(folder) else None

    def put(self, key: Mapping[str, object], build: Callable[[Path], None]) -> Path:
        """The folder for `key`, made by `build(path)` where it is not there. `build` creates `path`.

        Another process that asks for the same key waits. Raises CacheError where the cache cannot be written, and
        whatever `build` raises; then nothing is kept.
        """
        folder = self._folder(key)
        if (found := self.get(key)) is not None:  # without a lock: the cache may be one that this user can only read
            return found
        with self._explained():
            self._lock(folder).parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._lock(folder))
            lock.acquire()
        try:
            found = self.get(key)
            if found is not None:
                return found
            found = self._build(folder, key, build)
            self._use(folder)
        finally:
            lock.release()
        self.prune(self.max_bytes)
        return found

    def discard(self, key: Mapping[str, object]) -> None:
        """Deletes the entry for `key`: for callers that find damage which `get` does not look for."""
        logger.warning("the cache entry %s is damaged and will be made again", self._folder(key))
        self._uses.pop(self._folder(key), None)
        self._delete(self._folder(key), used=True)

    def entries(self) -> list[CacheEntry]:
        """All entries, least recently used first. One without a readable record counts as never used."""
        found = [_entry(folder) for folder in self.root.glob("entries/*") if folder.is_dir() and folder.name[0] != "."]
        return sorted(found, key=lambda entry: entry.used)

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(entry.bytes for entry in self.entries())

    def prune(self, max_bytes: int = 0) -> list[CacheEntry]:
        """Deletes the least recently used entries until the rest takes at most `max_bytes`; returns those that it deleted.

        One that is being built is left, and one that is in use.
        """
        entries = self.entries()
        left = sum(entry.bytes for entry in entries)
        deleted = []
        for entry in entries:
            if left <= max_bytes:
                break
            if self._delete(entry.path.parent):
                left -= entry.bytes
                deleted.append(entry)
        return deleted

    def _build(self, folder: Path, key: Mapping[str, object], build: Callable[[Path], None]) -> Path:
        with ExitStack() as stack:
            with self._explained():
                files.sweep(folder.parent)  # of any key: that key may never be built again
                temporary = stack.enter_context(files.staged(folder))
            build(temporary / CONTENT)
            if not (temporary / CONTENT).exists():
                raise CacheError(
                    "`build` wrote no cache entry",
                    where=temporary / CONTENT,
                    next_step="`build(path)` writes a file or a folder to that path",
                )
            with self._explained():
                listed = [files.record(path, temporary).to_json() for path in _files(temporary / CONTENT)]
                files.replace_file(temporary / RECORD, json.dumps({"key": key, "files": listed}).encode())
                stack.close()  # puts it into place
        return folder / CONTENT

    def _use(self, folder: Path) -> bool:
        """Marks an entry as used by this object; False where it is gone meanwhile."""
        if folder not in self._uses:
            use = _Use.of(folder / RECORD)
            if use is None:
                return False
            self._uses[folder] = use
        return True

    def _delete(self, folder: Path, *, used: bool = False) -> bool:
        """Deletes an entry unless it is being built, or used and not to be deleted all the same; returns whether it did."""
        try:
            with FileLock(self._lock(folder), timeout=0), _alone(folder / RECORD) as alone:
                if not alone and not used:
                    return False
                away = folder.with_name(f".{folder.name}.deleting")
                os.rename(folder, away)
                shutil.rmtree(away, ignore_errors=True)
                return True
        except (Timeout, OSError):
            return False

    def _explained(self) -> AbstractContextManager[None]:
        return files.explained("the cache cannot be written", self.root, CacheError)

    def _folder(self, key: Mapping[str, object]) -> Path:
        return self.root / "entries" / digest(key)

    def _lock(self, folder: Path) -> Path:
        return self.root / "locks" / f"{folder.name}.lock"


class _Use:
    """A shared lock on an entry's record, as long as this object lives; the system drops it with the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def of(cls, record: Path) -> _Use | None:
        """None where the record is gone, or about to be."""
        try:
            use = cls(os.open(record, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return None
        try:
            fcntl.flock(use._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return use if os.path.samestat(os.fstat(use._descriptor), record.stat()) else None
        except (BlockingIOError, FileNotFoundError):
            return None
        except OSError:  # a file system without locks: nothing else can tell that it is in use
            return use

    def __del__(self) -> None:
        os.close(self._descriptor)


@contextmanager
def _alone(record: Path) -> Iterator[bool]:
    """Whether nobody uses the entry of this record; then nobody begins to while this is entered."""
    try:
        descriptor = os.open(record, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # without a record it is no entry
        yield True
        return
    alone = True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            alone = False
        except OSError:  # a file system without locks
            pass
        yield alone
    finally:
        os.close(descriptor)


def default_limit() -> int:
    """Bytes that the cache may take: $FXHLO_CACHE_GIB, else DEFAULT_GIB. Raises CacheError where that is no number from 0 on."""
    text = os.environ.get(LIMIT) or str(DEFAULT_GIB)
    try:
        gib = float(text)
        if not 0 <= gib < float("inf"):
            raise ValueError
    except ValueError:
        raise CacheError(
            f"{LIMIT} is {text!r}, and it is a number of GiB", next_step=f"set it to {DEFAULT_GIB:.0f}, or unset it"
        ) from None
    return int(gib * 2**30)


def default_root() -> Path:
    """The folder of all that fxhlo keeps between processes: compiled steps and native kernels.

    $FXHLO_CACHE_DIR; else fxhlo in $VLLM_CACHE_ROOT, $XDG_CACHE_HOME or ~/.cache, the first that is set. Raises CacheError where
    none is and this user has no home.
    """
    try:
        if named := os.environ.get("FXHLO_CACHE_DIR"):
            return Path(named).expanduser().absolute()
        parent = os.environ.get("VLLM_CACHE_ROOT") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(parent).expanduser().absolute() / "fxhlo"
    except RuntimeError as problem:  # ~ of a user without a home
        raise CacheError(
            f"there is no folder for caches: {problem}",
            next_step="set FXHLO_CACHE_DIR to a folder that this user may write",
        ) from problem


def digest(key: Mapping[str, object]) -> str:
    """A name for `key`, independent of the order of its items. Raises CacheError where `key` is not JSON."""
    try:
        text = json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as problem:
        raise CacheError(
            f"a cache key must be JSON: {problem}", next_step="use strings, numbers, lists and dicts"
        ) from problem
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for one in sorted(path.rglob("*")):
        if one.is_file():
            yield one


def _damage(folder: Path, records: list[files.FileRecord]) -> str | None:
    """What is wrong with an entry; contents are read only where a file's time is not as it was recorded."""
    for record in records:
        damage = record.damage(folder)
        if damage is not None:
            return f"{record.file}: {damage}"
    return None


def _entry(folder: Path) -> CacheEntry:
    size = 0
    for path in _files(folder):
        with suppress(OSError):  # another process may delete the entry meanwhile
            size += path.stat().st_size
    try:
        return CacheEntry(
            json.loads((folder / RECORD).read_bytes())["key"], folder / CONTENT, size, (folder / RECORD).stat().st_mtime
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return CacheEntry({}, folder / CONTENT, size, 0.0)

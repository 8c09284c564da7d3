"""The cache: one builder per key, whole entries, damage found, the longest unused deleted first."""

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fxhlo.runtime.core.cache import Cache, default_root, digest
from fxhlo.runtime.core.errors import CacheError

KEY = {"model": "m", "buckets": [1, 2], "options": {"a": None}}


def builder(text="content", calls=None):
    def build(path):
        if calls is not None:
            calls.append(path)
        path.mkdir()
        (path / "deep").mkdir()
        (path / "deep" / "file").write_text(text)
        (path / "other").write_text("other")

    return build


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def warnings():
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("fxhlo.runtime.core.cache")
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)


def text(path):
    return (path / "deep" / "file").read_text()


def test_built_once(cache):
    calls = []
    assert cache.get(KEY) is None
    path = cache.put(KEY, builder(calls=calls))
    assert cache.put(KEY, builder(calls=calls)) == path == cache.get(KEY)
    assert (len(calls), text(path)) == (1, "content")
    assert Cache(cache.root).get(KEY) == path
    assert cache.get({**KEY, "model": "n"}) is None


def test_a_single_file(cache):
    path = cache.put(KEY, lambda path: path.write_bytes(b"abc"))
    assert cache.get(KEY).read_bytes() == path.read_bytes() == b"abc"


def test_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert len({digest({"a": value}) for value in (1, "1", [1], None, True, 1.5)}) == 6
    for key in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises(CacheError, match="a cache key must be JSON"):
            digest(key)


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("FXHLO_CACHE_DIR", str(tmp_path / "a"))
    assert Cache().root == tmp_path / "a"
    monkeypatch.delenv("FXHLO_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    assert default_root() == tmp_path / "b" / "fxhlo"
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "c"))
    assert default_root() == tmp_path / "c" / "fxhlo"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VLLM_CACHE_ROOT", "~/d")
    assert default_root() == tmp_path / "d" / "fxhlo"
    monkeypatch.delenv("VLLM_CACHE_ROOT")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root() == tmp_path / ".cache" / "fxhlo"


def test_native_kernels_lie_below_the_same_root(monkeypatch, tmp_path):
    from fxhlo.runtime.core.native import build

    monkeypatch.delenv("FXHLO_CACHE_DIR", raising=False)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    assert build.cache_folder() == tmp_path / "fxhlo" / "native"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    for name in ("FXHLO_CACHE_DIR", "VLLM_CACHE_ROOT", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)  # in no password file
    with pytest.raises(CacheError, match=r"no folder for caches: .*\n  next: set FXHLO_CACHE_DIR"):
        default_root()


def flip(path):
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path / "deep" / "file", 3),
        lambda path: flip(path / "deep" / "file"),
        lambda path: (path / "other").unlink(),
        lambda path: shutil.rmtree(path),
        lambda path: (path.parent / "entry.json").unlink(),
        lambda path: os.truncate(path.parent / "entry.json", 10),
        lambda path: (path.parent / "entry.json").write_text("[]"),
    ],
)
def test_damaged_entries_are_made_again(cache, damage, warnings):
    damage(cache.put(KEY, builder()))
    assert warnings == []
    assert cache.get(KEY) is None
    (said,) = warnings
    assert "is damaged and will be made again" in said
    assert text(cache.put(KEY, builder("new"))) == "new"
    assert text(cache.get(KEY)) == "new"


def test_a_copied_cache_is_still_good(cache, tmp_path):
    cache.put(KEY, builder())
    shutil.copytree(cache.root, tmp_path / "copy", copy_function=shutil.copy)
    assert text(Cache(tmp_path / "copy").get(KEY)) == "content"


def test_a_builder_that_fails_leaves_nothing(cache):
    def fail(path):
        path.mkdir()
        (path / "half").write_text("x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.put(KEY, fail)
    assert cache.get(KEY) is None
    assert list((cache.root / "entries").iterdir()) == []
    with pytest.raises(CacheError, match="wrote no cache entry"):
        cache.put(KEY, lambda path: None)
    assert text(cache.put(KEY, builder())) == "content"


def test_a_root_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CacheError, match="the cache cannot be written: Not a directory"):
        Cache(tmp_path / "file" / "cache").put(KEY, builder())
    assert Cache(tmp_path / "nowhere").entries() == []


PUT = """
import os, sys, time
from pathlib import Path
from fxhlo.runtime.core.cache import Cache
def build(path):
    with open(Path(sys.argv[1]).parent / "log", "a") as log:
        log.write(f"{os.getpid()}\\n")
    print("building", flush=True)
    time.sleep(float(sys.argv[2]))
    path.mkdir()
    (path / "file").write_text(str(os.getpid()))
print((Cache(sys.argv[1]).put({"a": 1}, build) / "file").read_text(), flush=True)
"""


def put(cache, seconds):
    return subprocess.Popen(
        [sys.executable, "-c", PUT, str(cache.root), str(seconds)], stdout=subprocess.PIPE, text=True
    )


def test_one_process_builds_and_the_others_wait(cache):
    processes = [put(cache, 0.5) for _ in range(4)]
    said = [process.communicate(timeout=30)[0].split()[-1] for process in processes]
    built = (cache.root.parent / "log").read_text().split()
    assert len(built) == 1
    assert said == built * 4


def test_a_killed_builder_is_replaced(cache):
    process = put(cache, 60)
    assert process.stdout.readline() == "building\n"
    process.kill()
    process.wait()
    assert cache.get({"a": 1}) is None
    other = put(cache, 0)
    assert other.communicate(timeout=30)[0].split()[-1] == str(other.pid)


def test_listing_and_pruning(cache):
    for index in range(4):
        path = Cache(cache.root).put({"index": index}, lambda path: path.write_bytes(bytes(10_000)))
        os.utime(path.parent / "entry.json", (index, index))
    assert [entry.key["index"] for entry in cache.entries()] == [0, 1, 2, 3]
    assert 40_000 < cache.size() < 44_000
    Cache(cache.root).get({"index": 0})  # now it is the last used
    deleted = cache.prune(25_000)
    assert [entry.key["index"] for entry in deleted] == [1, 2]
    assert [entry.key["index"] for entry in cache.entries()] == [3, 0]
    assert cache.prune(25_000) == []
    cache.prune()
    assert cache.size() == 0
    assert cache.get({"index": 3}) is None


def make(root, name, size=10_000, **options):
    Cache(root, **options).put({"name": name}, lambda path: path.write_bytes(bytes(size)))
    age = {"a": 1, "b": 2, "c": 3}.get(name)
    if age:
        os.utime(next(root.glob(f"entries/{digest({'name': name})}/entry.json")), (age, age))


def names(root):
    return {entry.key["name"] for entry in Cache(root).entries()}


def test_a_cache_over_its_limit_loses_what_was_not_used_for_the_longest_time(cache, monkeypatch):
    for name in "abc":
        make(cache.root, name)
    make(cache.root, "d", max_bytes=35_000)
    assert names(cache.root) == {"b", "c", "d"}
    Cache(cache.root).get({"name": "b"})
    monkeypatch.setenv("FXHLO_CACHE_GIB", str(35_000 / 2**30))
    make(cache.root, "e")
    assert names(cache.root) == {"b", "d", "e"}
    make(cache.root, "f", size=100_000)
    assert names(cache.root) == {"f"}, "the newest is in use, however large it is"


USE = """
import sys
from fxhlo.runtime.core.cache import Cache
cache = Cache(sys.argv[1])
assert cache.get({"name": "a"})
print("has it", flush=True)
sys.stdin.read()
"""


def test_nothing_is_lost_that_another_process_uses(cache):
    for name in "abc":
        make(cache.root, name)
    command = [sys.executable, "-P", "-c", USE, str(cache.root)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "has it\n"
    os.utime(next(cache.root.glob(f"entries/{digest({'name': 'a'})}/entry.json")), (1, 1))
    make(cache.root, "d", max_bytes=15_000)
    assert names(cache.root) == {"a", "d"}
    cache.discard({"name": "a"})  # damage is dropped all the same
    assert names(cache.root) == {"d"}
    other.communicate()
    make(cache.root, "a")
    assert Cache(cache.root).prune() and names(cache.root) == set()


@pytest.mark.parametrize("limit", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_none(cache, monkeypatch, limit):
    monkeypatch.setenv("FXHLO_CACHE_GIB", limit)
    with pytest.raises(CacheError, match=f"FXHLO_CACHE_GIB is '{limit}'.*\n  next: set it to 16"):
        Cache(cache.root)


def test_pruning_leaves_what_is_being_built(cache):
    cache.put(KEY, builder("old"))
    (cache.get(KEY) / "other").unlink()
    started, finish = threading.Event(), threading.Event()

    def slow(path):
        started.set()
        finish.wait(10)
        builder("new")(path)

    thread = threading.Thread(target=cache.put, args=(KEY, slow))
    thread.start()
    started.wait(10)
    assert cache.prune() == []
    finish.set()
    thread.join()
    assert text(cache.get(KEY)) == "new"


def test_asking_is_quick(cache):
    cache.put(KEY, builder())
    start = time.perf_counter()
    for _ in range(20):
        cache.get(KEY)
    assert (time.perf_counter() - start) / 20 < 0.02
    assert isinstance(cache.get(KEY), Path)

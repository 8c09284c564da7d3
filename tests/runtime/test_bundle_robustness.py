"""Bundles and caches under bad luck: odd paths, links, moves, full and read-only disks, odd arrays. Each ends right or in a clear error."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from fxhlo.runtime.core import files, weights
from fxhlo.runtime.core.bundle import Bundle, BundleWriter, load
from fxhlo.runtime.core.cache import Cache
from fxhlo.runtime.core.errors import BundleError, CacheError, UnsupportedError
from fxhlo.runtime.core.signature import Result, Signature

NOTHING = Signature((), (Result("y", (4,), "float32"),))
RAMP = np.arange(4, dtype=np.float32)


def save(path, value=RAMP, **options):
    with BundleWriter(path, **options) as writer:
        writer.add_entry("main", b"a module", NOTHING)
        writer.add_target("main", "cpu", module=b"legalized")
        writer.add_weights({"w": value})
    return Path(path)


def read(path):
    return load(path).weights()["w"]


# -- paths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["größe 模型 🤖", "with\nnewline", "-rf", "a'b\"c", os.fsdecode(b"latin1-\xe9"), "x" * 200, "*?[a]"]
)
def test_any_name_that_the_disk_takes(tmp_path, name):
    path = save(tmp_path / name)
    np.testing.assert_array_equal(read(path), RAMP)
    assert load(path).name == name
    load(path).verify()
    save(path, RAMP + 1)
    assert read(path)[0] == 1
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_weights_outside_with_an_odd_name(tmp_path):
    outside = tmp_path / os.fsdecode(b"latin1-\xe9.safetensors")
    weights.write(outside, {"w": RAMP}, tmp_path)
    with BundleWriter(tmp_path / "b") as writer:
        writer.add_entry("main", b"a module", NOTHING)
        writer.refer_weights(outside)
    np.testing.assert_array_equal(read(tmp_path / "b"), RAMP)


def test_a_link_to_a_bundle_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    save(tmp_path / "disk" / "b")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "b")
    save(tmp_path / "link", RAMP + 1)
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "link")[0] == read(tmp_path / "disk" / "b")[0] == 1
    (tmp_path / "dangling").symlink_to(tmp_path / "disk" / "new")
    save(tmp_path / "dangling")
    assert (tmp_path / "disk" / "new" / "manifest.json").exists()


@pytest.mark.parametrize("use", [load, save])
def test_a_circle_of_links(tmp_path, use):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(BundleError, match=r"[Ss]ymlink loop|[Ss]ymbolic links"):
        use(tmp_path / "a")


@pytest.mark.parametrize("use", [load, save])
@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_names_that_no_disk_takes(tmp_path, use, name):
    with pytest.raises(BundleError, match=r"null|too long"):
        use(tmp_path / name)


def test_a_relative_path_survives_a_change_of_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("b")
    bundle = load("b")
    monkeypatch.chdir("/")
    assert bundle.weights()["w"][1] == 1


def test_a_bundle_that_was_moved_while_it_was_open(tmp_path):
    bundle = load(save(tmp_path / "b"))
    (tmp_path / "b").rename(tmp_path / "c")
    with pytest.raises(BundleError, match=r"the bundle is not where it was opened") as caught:
        bundle.weights()["w"]
    assert caught.value.where == str(tmp_path / "b")
    assert "open it where it is now" in caught.value.next_step
    with pytest.raises(BundleError, match="not where it was opened"):
        bundle["main"]


# -- what is missing, or something else ---------------------------------------------------------------------------------


def test_a_weight_file_that_is_missing(tmp_path):
    bundle = load(save(tmp_path / "b"))
    (bundle.path / "weights-00000.safetensors").unlink()
    with pytest.raises(BundleError, match="it is missing") as caught:
        bundle.weights()["w"]
    assert caught.value.where.endswith("weights-00000.safetensors")


def test_weights_outside_that_are_missing_can_be_put_back(tmp_path):
    outside = tmp_path / "model.safetensors"
    weights.write(outside, {"w": RAMP}, tmp_path)
    with BundleWriter(tmp_path / "b") as writer:
        writer.add_entry("main", b"a module", NOTHING)
        writer.refer_weights(outside, digest=True)
    outside.rename(tmp_path / "away")
    with pytest.raises(BundleError, match="it is missing") as caught:
        read(tmp_path / "b")
    assert caught.value.where == str(outside)
    assert "put that file back" in caught.value.next_step
    shutil.copy(tmp_path / "away", outside)
    np.testing.assert_array_equal(read(tmp_path / "b"), RAMP)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "\xff\xfe",
        "null",
        "[]",
        '"fxhlo-bundle"',
        "{}",
        '{"format": "fxhlo-bundle", "version": true}',
        "NaN",
        "\0" * 100,
    ],
    ids=lambda text: text[:12].encode("unicode_escape").decode(),
)
def test_a_manifest_that_is_none(tmp_path, text):
    save(tmp_path / "b")
    (tmp_path / "b" / "manifest.json").write_bytes(text.encode("latin1"))
    with pytest.raises(BundleError, match=r"damaged|format version") as caught:
        load(tmp_path / "b")
    assert caught.value.where.endswith("manifest.json")


def test_a_folder_where_a_file_should_be(tmp_path):
    bundle = load(save(tmp_path / "b"))
    file = bundle.path / bundle.entries["main"].builds["cpu"].module.file
    file.unlink()
    file.mkdir()
    with pytest.raises(BundleError, match="a file of the bundle is damaged"):
        bundle["main"]
    (bundle.path / "manifest.json").unlink()
    (bundle.path / "manifest.json").mkdir()
    with pytest.raises(BundleError, match="the manifest cannot be read: Is a directory"):
        load(bundle.path)


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    bundle = load(save(tmp_path / "b"))

    def refused(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(BundleError, match="a file of the bundle cannot be read: Permission denied") as caught:
        bundle["main"]
    assert "modules/" in caught.value.where


# -- arrays ------------------------------------------------------------------------------------------------------------


def test_arrays_of_the_other_byte_order_keep_their_values(tmp_path):
    assert read(save(tmp_path / "b", RAMP.astype(">f4"))).tolist() == [0, 1, 2, 3]


def test_arrays_with_strides_keep_their_values(tmp_path):
    assert read(save(tmp_path / "b", np.arange(8, dtype=ml_dtypes.bfloat16)[::-2])).tolist() == [7, 5, 3, 1]


@pytest.mark.parametrize(
    "value",
    [np.array(["a"]), np.array([None]), np.zeros(3, "datetime64[s]"), np.zeros(2, "f4,f4"), np.zeros(3, np.complex128)],
)
def test_arrays_that_safetensors_does_not_have(tmp_path, value):
    with pytest.raises(UnsupportedError, match=r"weight w is .*, which safetensors does not have"):
        save(tmp_path / "b", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_names_that_a_weight_file_does_not_take(tmp_path, name):
    with pytest.raises(BundleError, match="is no name for a weight"):
        weights.write(tmp_path / "w", {name: RAMP}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("notes", [{"a": np.int64(3)}, {"a": object()}, {("a",): 1}])
def test_notes_that_are_no_json(tmp_path, notes):
    with pytest.raises(BundleError, match="notes, bindings and options must be JSON"):
        save(tmp_path / "b", notes=notes)
    assert not list(tmp_path.iterdir())


# -- disks -------------------------------------------------------------------------------------------------------------


def test_where_nothing_may_be_written():
    with pytest.raises(BundleError, match=r"the bundle cannot be written: .*\n  at: /sys.*\n  next: choose a folder"):
        save("/sys/fxhlo/b")
    with pytest.raises(CacheError, match=r"the cache cannot be written: .*\n.*\n  next: choose a folder"):
        Cache("/sys/fxhlo").put({"a": 1}, lambda path: path.mkdir())


def test_a_folder_that_cannot_be_looked_into(tmp_path, monkeypatch):
    save(tmp_path / "b")

    def refused(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refused)
    (tmp_path / "b" / "manifest.json").unlink()
    with pytest.raises(BundleError, match="the bundle cannot be written: Permission denied"):
        save(tmp_path / "b")


SMALL_DISK = """
import os, subprocess, sys
import numpy as np
from fxhlo.runtime.core.bundle import BundleWriter, load
from fxhlo.runtime.core.cache import Cache
from fxhlo.runtime.core.errors import FxhloError
from fxhlo.runtime.core.signature import Result, Signature

def save(size):
    with BundleWriter(sys.argv[1] + "/b") as writer:
        writer.add_entry("main", b"a module", Signature((), (Result("y", (4,), "float32"),)))
        writer.add_weights({"w": np.full(size, 7, np.float32)})

subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", sys.argv[1]], check=True)
save(1000)
for attempt in (lambda: save(10**6), lambda: Cache(sys.argv[1] + "/c").put({"a": 1}, lambda path: path.write_bytes(bytes(10**7)))):
    try:
        attempt()
    except (FxhloError, OSError) as problem:
        print(type(problem).__name__, str(problem).splitlines()[0], getattr(problem, "next_step", None))
print(load(sys.argv[1] + "/b").weights()["w"][0], sorted(one for one in os.listdir(sys.argv[1])))
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
load(sys.argv[1] + "/b").verify()
for attempt in (lambda: save(10), lambda: load(sys.argv[1] + "/b").add_target("main", "cpu", module=b"x")):
    try:
        attempt()
    except FxhloError as problem:
        print(type(problem).__name__, str(problem).splitlines()[0], problem.next_step)
"""


def in_a_namespace(*command):
    """In a mount namespace of its own, where this user may mount; skipped where the machine does not let it."""
    unshare = ["unshare", "--mount", "--user", "--map-root-user"] if os.getuid() else ["unshare", "--mount"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode
    ):
        pytest.skip("no file system can be mounted here")
    return subprocess.run([*unshare, *command], capture_output=True, text=True, timeout=120)


def test_a_disk_that_is_full_and_one_that_is_read_only(tmp_path):
    ran = in_a_namespace(sys.executable, "-c", SMALL_DISK, str(tmp_path))
    lines = ran.stdout.splitlines()
    assert len(lines) == 5, ran.stderr
    assert (
        lines[0]
        == "BundleError the bundle cannot be written: No space left on device free some space on that disk, or choose another folder"
    )
    assert "No space left" in lines[1]
    assert lines[2] == "7.0 ['b', 'c']"
    for line in lines[3:]:
        assert line.startswith(
            "BundleError the bundle cannot be written: Read-only file system choose a folder on a disk"
        )


def test_a_disk_without_locks_and_without_syncing_of_folders(tmp_path, monkeypatch):
    """As some network and FUSE file systems are."""
    real = os.fsync

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    def files_only(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(os, "fsync", files_only)
    save(tmp_path / "b")
    save(tmp_path / "b", RAMP + 1)
    assert read(tmp_path / "b")[0] == 1


def test_what_an_earlier_fallback_left_is_in_nobodys_way(tmp_path, monkeypatch):
    """Without an atomic exchange the old folder is moved aside; one that was left there by a killed process stays."""
    import ctypes

    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: object())
    save(tmp_path / "b")
    (tmp_path / "b.old").mkdir()
    (tmp_path / "b.old" / "mine").write_text("x")
    save(tmp_path / "b", RAMP + 1)
    assert read(tmp_path / "b")[0] == 1
    assert (tmp_path / "b.old" / "mine").exists()


# -- the cache ---------------------------------------------------------------------------------------------------------


def test_a_cache_that_may_only_be_read_answers(tmp_path, monkeypatch):
    made = Cache(tmp_path).put({"a": 1}, lambda path: path.write_text("x"))
    shutil.rmtree(tmp_path / "locks")
    real = os.mkdir

    def read_only(path, *args, **kwargs):
        if str(path).startswith(str(tmp_path)):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        real(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", read_only)
    assert Cache(tmp_path).put({"a": 1}, lambda path: path.write_text("y")) == made
    assert made.read_text() == "x"
    with pytest.raises(CacheError, match="Read-only file system"):
        Cache(tmp_path).put({"a": 2}, lambda path: path.write_text("y"))


def test_what_a_killed_builder_left_is_deleted_by_a_builder_of_another_entry(tmp_path, monkeypatch):
    left = tmp_path / "entries" / ".0123.writing-abcdef"
    left.mkdir(parents=True)
    (left / "content").write_bytes(bytes(1000))
    monkeypatch.setattr(files, "ABANDONED_AFTER", -1.0)
    Cache(tmp_path).put({"a": 1}, lambda path: path.write_text("x"))
    assert not left.exists()


def test_the_cache_is_listed_while_its_files_vanish(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    cache.put({"a": 1}, lambda path: path.write_text("x"))
    real = Path.stat

    def vanished(self, **options):
        if self.name == "content" and "entries" in self.parts:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self))
        return real(self, **options)

    monkeypatch.setattr(Path, "stat", vanished)
    assert [entry.bytes for entry in cache.entries()][0] >= 0


def test_an_entry_whose_record_is_no_record_is_made_again(tmp_path):
    cache = Cache(tmp_path)
    path = cache.put({"a": 1}, lambda path: path.write_text("x"))
    for text in ("[" * 100_000, "[]", '{"files": [3]}', '{"files": [{"file": "../../x", "bytes": 1}]}'):
        (path.parent / "entry.json").write_text(text)
        assert cache.get({"a": 1}) is None
        assert cache.put({"a": 1}, lambda path: path.write_text("x")) == path


def test_a_bundle_is_opened_by_many_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    bundle = Bundle.open(save(tmp_path / "b"))
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: bundle.weights()["w"][3], range(64))) == {3.0}


def test_the_manifest_of_a_bundle_is_plain_json(tmp_path):
    text = (save(tmp_path / "größe") / "manifest.json").read_text()
    assert json.loads(text)["name"] == "größe"
    assert "größe" in text

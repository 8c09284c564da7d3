"""Bundles: written whole or not at all, damage is found, and what is loaded is what was stored."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

from fxhlo.runtime.core import files, pjrt, weights
from fxhlo.runtime.core.bundle import Bundle, BundleWriter, load
from fxhlo.runtime.core.errors import BundleError, ShapeError, UnsupportedError
from fxhlo.runtime.core.executable import Executable
from fxhlo.runtime.core.manifest import Manifest
from fxhlo.runtime.core.signature import Argument, Result, Signature

MODULE = """module @scale { func.func public @main(%w: tensor<64xf32>, %x: tensor<64xf32>) -> tensor<64xf32> {
  %0 = stablehlo.multiply %w, %x : tensor<64xf32>
  return %0 : tensor<64xf32> } }"""
SIGNATURE = Signature(
    (Argument("w", "weight", (64,), "float32"), Argument("x", "input", (64,), "float32")),
    (Result("y", (64,), "float32"),),
)
X = np.ones(64, np.float32)


def portable(text=MODULE):
    from jax.extend.mlir.dialects import stablehlo

    return stablehlo.serialize_portable_artifact_str(text, stablehlo.get_current_version())


@pytest.fixture(scope="module")
def compiled():
    return Executable(pjrt.compile(MODULE), SIGNATURE)


def save(path, value=3.0, executable=None, **options):
    with BundleWriter(path, **options) as writer:
        writer.add_entry("main", portable(), SIGNATURE, bindings={"tokens": 64})
        writer.add_target("main", "cpu", module=MODULE.encode(), executable=executable)
        writer.add_weights({"w": np.full(64, value, np.float32)})
    return path


def first(bundle):
    return pjrt.get(bundle["main"](X)[0])[0]


# -- what is loaded is what was stored ---------------------------------------------------------------------------------


def test_there_and_back(tmp_path, compiled):
    path = save(tmp_path / "deep" / "b", executable=compiled, name="scale", notes={"why": [1, 2]})
    bundle = load(path)
    assert (bundle.name, list(bundle), dict(bundle.manifest.notes)) == ("scale", ["main"], {"why": [1, 2]})
    entry = bundle.entries["main"]
    assert (entry.signature, dict(entry.bindings)) == (SIGNATURE, {"tokens": 64})
    assert bundle["main"].origin == "stored executable"
    assert bundle["main"] is bundle["main"]
    assert pjrt.get(bundle(X)[0])[0] == pjrt.get(bundle(x=X)[0])[0] == 3
    assert bundle.manifest.made["jaxlib"] == pjrt.versions()["jaxlib"]
    bundle.verify()


def test_loading_needs_neither_torch_nor_vllm(tmp_path, compiled):
    path = save(tmp_path / "b", executable=compiled)
    code = (
        "import sys, fxhlo, numpy as np\n"
        f"y, = fxhlo.load({str(path)!r})(np.ones(64, np.float32))\n"
        "print(np.asarray(y)[0], {'torch', 'vllm', 'fxhlo.lowering', 'fxhlo.passes'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert ran.stdout == "3.0 set()\n", ran.stderr


def test_without_a_stored_executable_the_legalized_module_is_compiled(tmp_path):
    bundle = load(save(tmp_path / "b"))
    assert bundle["main"].origin == "compiled from the legalized module: no executable is stored for cpu"
    assert first(bundle) == 3


def test_without_a_build_the_portable_module_is_compiled(tmp_path):
    with BundleWriter(tmp_path / "b") as writer:
        writer.add_entry("main", portable(), SIGNATURE)
        writer.add_weights({"w": X})
    bundle = load(tmp_path / "b")
    assert bundle["main"].origin == "compiled from the portable module: no executable is stored for cpu"
    assert first(bundle) == 1


def test_an_executable_of_another_machine_is_compiled_anew(tmp_path, compiled):
    with BundleWriter(tmp_path / "b") as writer:
        writer.add_entry("main", portable(), SIGNATURE)
        elsewhere = {**pjrt.fingerprint(), "jaxlib": "0.0.1"}
        writer.add_target("main", "cpu", module=MODULE.encode(), executable=b"not for here", fingerprint=elsewhere)
        writer.add_weights({"w": X})
    bundle = load(tmp_path / "b")
    here = pjrt.versions()["jaxlib"]
    assert bundle["main"].origin.endswith(f"legalized module: the stored executable is for jaxlib 0.0.1 (here {here})")
    assert first(bundle) == 1
    bundle.add_executable(bundle["main"])
    again = load(tmp_path / "b")
    assert (again["main"].origin, first(again)) == ("stored executable", 1)


def test_an_executable_of_other_compile_options_is_compiled_anew(tmp_path):
    """Of a target's own options: an executable that was compiled with what has been switched off since is not run."""
    with BundleWriter(tmp_path / "b") as writer:
        writer.add_entry("main", portable(), SIGNATURE)
        elsewhere = {name: value for name, value in pjrt.fingerprint().items() if name != "options"}
        writer.add_target("main", "cpu", module=MODULE.encode(), executable=b"not for here", fingerprint=elsewhere)
        writer.add_weights({"w": X})
    assert "legalized module: the stored executable is for options None (here" in load(tmp_path / "b")["main"].origin


def test_an_executable_that_does_not_load_is_compiled_anew(tmp_path):
    with BundleWriter(tmp_path / "b") as writer:
        writer.add_entry("main", portable(), SIGNATURE)
        writer.add_target("main", "cpu", executable=b"garbage", fingerprint=pjrt.fingerprint())
    executable = load(tmp_path / "b").executable("main")
    assert executable.origin.startswith(
        "compiled from the portable module: the serialized executable does not load here"
    )


def test_options_are_part_of_a_build(tmp_path, compiled):
    with BundleWriter(tmp_path / "b") as writer:
        writer.add_entry("main", portable(), SIGNATURE)
        writer.add_target("main", "cpu", executable=compiled, options={"xla_backend_optimization_level": 1})
    bundle = load(tmp_path / "b")
    assert bundle.executable("main").origin == "stored executable"
    assert (
        "it was stored for options" in bundle.executable("main", options={"xla_backend_optimization_level": 0}).origin
    )


def test_entries_share_weights_on_the_device(tmp_path):
    with BundleWriter(tmp_path / "b") as writer:
        for name in ("tokens=64", "tokens=64,again"):
            writer.add_entry(name, portable(), SIGNATURE)
        writer.add_weights({"w": X})
    bundle = load(tmp_path / "b")
    one, other = bundle["tokens=64"], bundle["tokens=64,again"]
    assert one._bound[0] is other._bound[0]
    assert one._bound[0].unsafe_buffer_pointer() == bundle.weights()["w"].ctypes.data
    assert len(list((bundle.path / "modules").iterdir())) == 1
    with pytest.raises(BundleError, match="the bundle has 2 entries"):
        bundle(X)
    with pytest.raises(BundleError, match=r"no entry 'tokens=65'\n.*\n.*tokens=64"):
        bundle["tokens=65"]


def test_custom_calls_need_the_native_kernels(tmp_path, monkeypatch):
    native = types.SimpleNamespace(TARGETS=("fxhlo_linear",), unavailable=lambda: "no compiler", register=lambda: None)
    monkeypatch.setattr("fxhlo.runtime.core.native", native, raising=False)
    monkeypatch.setitem(sys.modules, "fxhlo.runtime.core.native", native)
    with BundleWriter(tmp_path / "b") as writer:
        writer.add_entry("main", portable(), SIGNATURE)
        writer.add_target("main", "cpu", module=MODULE.encode(), custom_calls=["fxhlo_linear"])
    with pytest.raises(
        BundleError, match="calls fxhlo_linear, and fxhlo's native kernels are not available: no compiler"
    ):
        load(tmp_path / "b").executable("main")
    registered = []
    native.unavailable, native.register = lambda: None, lambda: registered.append(True)
    load(tmp_path / "b").executable("main")
    assert registered


# -- weights -----------------------------------------------------------------------------------------------------------

ARRAYS = {
    "a": np.arange(96, dtype=np.float32).reshape(8, 12),
    "odd": np.arange(5, dtype=np.int8),
    "b": np.arange(64).astype(ml_dtypes.bfloat16),
    "scalar": np.float32(7).reshape(()),
    "none": np.zeros((0, 3), np.float16),
    "flags": np.array([True, False]),
    "f8": np.arange(64).astype(ml_dtypes.float8_e4m3fn),
    "turned": np.arange(64 * 64, dtype=np.float32).reshape(64, 64).T,
}


@pytest.mark.parametrize("shard_bytes", [1, 600, 10**9])
def test_weights_of_every_kind_in_shards(tmp_path, shard_bytes):
    with BundleWriter(tmp_path / "b", shard_bytes=shard_bytes) as writer:
        writer.add_entry("main", portable(), Signature((), SIGNATURE.results))
        writer.add_weights(ARRAYS)
    stored = load(tmp_path / "b").weights()
    assert set(stored) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert (stored[name].dtype, stored[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(stored[name], array)
        assert array.nbytes % 64 or not array.nbytes or stored[name].ctypes.data % 64 == 0
    number = len(list((tmp_path / "b").glob("*.safetensors")))
    assert number == {1: 8, 600: 2, 10**9: 1}[shard_bytes]


def test_weight_files_are_plain_safetensors(torch, tmp_path):
    from safetensors.torch import load_file, save_file

    weights.write(tmp_path / "ours.safetensors", ARRAYS, tmp_path)
    theirs = load_file(tmp_path / "ours.safetensors")
    assert theirs.keys() == ARRAYS.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor.double().numpy(), ARRAYS[name].astype(np.float64))
    save_file(theirs, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    stored = weights.tensors(tmp_path / "theirs.safetensors")
    mapped = weights.mapped(tmp_path / "theirs.safetensors")
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(weights.view(stored[name], mapped), array)


def test_torch_tensors_are_stored_and_passed(torch, tmp_path):
    with BundleWriter(tmp_path / "b") as writer:
        writer.add_entry("main", portable(), SIGNATURE)
        writer.add_weights([("w", torch.full((64,), 3.0)), ("half", torch.ones(3, dtype=torch.bfloat16))])
    bundle = load(tmp_path / "b")
    assert bundle.weights()["half"].dtype == ml_dtypes.bfloat16
    assert pjrt.get(bundle(torch.ones(64))[0])[0] == 3


def test_weights_are_mapped_and_not_read(tmp_path):
    with BundleWriter(tmp_path / "b") as writer:
        writer.add_entry("main", portable(), Signature((), SIGNATURE.results))
        writer.add_weights({"big": np.ones(50_000_000, np.float32)})
    code = (
        "import resource, fxhlo.runtime.core.bundle as b\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"before = peak(); big = b.load({str(tmp_path / 'b')!r}).weights()['big']\n"
        "print(big[-1], peak() - before)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    last, grown = ran.stdout.split()
    assert last == "1.0"
    assert int(grown) < 50_000  # of 195,313 KiB


def test_weights_outside_of_the_bundle(tmp_path):
    outside = tmp_path / "model.safetensors"
    weights.write(outside, {"layer.w": np.full(64, 4, np.float32), "other": X}, tmp_path)
    for name, digest in (("timed", False), ("digested", True)):
        with BundleWriter(tmp_path / name) as writer:
            writer.add_entry("main", portable(), SIGNATURE)
            writer.refer_weights(outside, {"w": "layer.w"}, digest=digest)
            with pytest.raises(BundleError, match=r"no tensor 'layer\.v'"):
                writer.refer_weights(outside, {"v": "layer.v"})
        assert first(load(tmp_path / name)) == 4
        assert not list((tmp_path / name).glob("*.safetensors"))
    os.utime(outside, (1, 1))
    assert first(load(tmp_path / "digested")) == 4
    with pytest.raises(BundleError, match="it was changed after it was recorded") as caught:
        load(tmp_path / "timed")["main"]
    assert caught.value.where == str(outside)
    flip(outside)
    with pytest.raises(BundleError, match="its content is not what was written"):
        load(tmp_path / "digested")["main"]
    outside.unlink()
    with pytest.raises(BundleError, match="it is missing"):
        load(tmp_path / "digested")["main"]


@pytest.mark.parametrize("size", [0, 4, 8, 40, -1])
def test_a_truncated_safetensors_file(tmp_path, size):
    path = tmp_path / "w.safetensors"
    weights.write(path, {"w": X}, tmp_path)
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    with pytest.raises(BundleError, match="truncated or damaged") as caught:
        weights.tensors(path)
    assert caught.value.where == str(path)


# -- damage ------------------------------------------------------------------------------------------------------------


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "flipped": flip,
    "deleted": lambda path: path.unlink(),
}
KINDS = ["manifest.json", "modules/*", "executables/*", "*.safetensors"]


@pytest.mark.parametrize("damage", list(DAMAGES))
@pytest.mark.parametrize("kind", KINDS)
def test_damage_to_any_file_is_found_and_named(tmp_path, compiled, kind, damage):
    whole = load(save(tmp_path / "b", executable=None if kind == "modules/*" else compiled))
    assert first(whole) == 3
    build = whole.entries["main"].builds["cpu"]
    path = whole.path / build.module.file if kind == "modules/*" else next(whole.path.glob(kind))
    DAMAGES[damage](path)
    with pytest.raises(BundleError) as caught:
        load(whole.path)["main"]
    where = whole.path if (kind, damage) == ("manifest.json", "deleted") else path
    assert caught.value.where == str(where)
    assert caught.value.next_step
    with pytest.raises(BundleError):
        load(whole.path).verify()


def test_a_byte_of_the_portable_module_is_missed_by_verify_alone(tmp_path, compiled):
    bundle = load(save(tmp_path / "b", executable=compiled))
    flip(bundle.path / bundle.entries["main"].module.file)
    assert first(bundle) == 3  # it is not needed
    with pytest.raises(BundleError, match="content is not what was written"):
        bundle.verify()


def test_damage_that_hides_in_time_is_found_by_verify(tmp_path, compiled):
    bundle = load(save(tmp_path / "b", executable=compiled))
    path = next(bundle.path.glob("*.safetensors"))
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load(bundle.path).weights()["w"].shape == (64,)
    with pytest.raises(BundleError, match="content is not what was written"):
        Bundle.open(bundle.path, verify=True)["main"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda data: data.update(version=1),
            r"format version 1, and this fxhlo reads version 2\n.*\n.*make the bundle again",
        ),
        (lambda data: data.update(version=3), r"format version 3, and .*version 2\n.*\n  next: update fxhlo"),
        (lambda data: data.pop("version"), "format version None"),
        (lambda data: data.update(format="zip"), "its format is not fxhlo-bundle"),
        (lambda data: data.update(name="other"), "digest does not fit"),
        (lambda data: data["entries"]["main"]["bindings"].update(tokens=65), "digest does not fit"),
    ],
)
def test_manifests_that_are_refused(tmp_path, change, text):
    path = save(tmp_path / "b") / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=text) as caught:
        load(tmp_path / "b")
    assert caught.value.where == str(path)


@pytest.mark.parametrize("file", ["../x", "/etc/passwd", "", "modules/../../x"])
def test_a_manifest_names_no_file_outside(tmp_path, file):
    bundle = load(save(tmp_path / "b"))
    record = files.FileRecord(file, 1, "0")
    entry = types.SimpleNamespace(to_json=lambda: {**bundle.entries["main"].to_json(), "module": record.to_json()})
    (bundle.path / "manifest.json").write_bytes(Manifest("b", {"main": entry}).text())
    with pytest.raises(BundleError, match="leaves the folder"):
        load(bundle.path)


def test_what_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="there is no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="it has no manifest"):
        load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="this is a file"):
        load(tmp_path / "file")
    with pytest.raises(UnsupportedError, match="no target 'cpuu'"):
        load(save(tmp_path / "b"), "cpuu")


# -- writing -----------------------------------------------------------------------------------------------------------


def test_what_the_writer_refuses(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(BundleError, match="something else than a bundle"):
        save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    (tmp_path / "mine" / "manifest.json").write_text('{"files": {}}')  # another program's, as a prepared model has one
    with pytest.raises(BundleError, match="something else than a bundle"):
        save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(BundleError, match="in a with block"):
        BundleWriter(tmp_path / "b").add_entry("main", b"", SIGNATURE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def add(writer):
    writer.add_entry("main", b"", SIGNATURE)


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([], "without entries"),
        ([add, add], "entry 'main' already"),
        ([add, lambda writer: writer.add_weights({"v": X})], "no weight 'w', which the entry 'main' takes"),
        (
            [add, lambda writer: writer.add_weights({"w": X.astype(np.float64)})],
            r"takes w: float32\[64\], and the bundle has float64\[64\]",
        ),
        ([lambda writer: writer.add_weights({"w": X})] * 2, "weight 'w' is there already"),
        ([add, lambda writer: writer.add_target("main", "cpu", executable=b"x")], "needs its fingerprint"),
        ([add, lambda writer: writer.add_target("man", "cpu", module=b"x")], "no entry 'man'"),
    ],
)
def test_mistakes_of_the_writer(tmp_path, steps, text):
    def write():
        with BundleWriter(tmp_path / "b") as writer:
            for step in steps:
                step(writer)

    with pytest.raises(BundleError, match=text):
        write()
    assert list(tmp_path.iterdir()) == []


def half(path):
    with BundleWriter(path) as writer:
        writer.add_entry("main", b"half", SIGNATURE)
        raise ZeroDivisionError


def test_a_failed_writer_leaves_the_old_bundle(tmp_path):
    save(tmp_path / "b", 3)
    with pytest.raises(ZeroDivisionError):
        half(tmp_path / "b")
    assert first(load(tmp_path / "b")) == 3
    save(tmp_path / "b", 4)
    assert first(load(tmp_path / "b")) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_an_open_bundle_survives_its_replacement(tmp_path):
    old = load(save(tmp_path / "b", 3))
    assert old.weights()["w"][0] == 3
    save(tmp_path / "b", 4)
    assert first(old) == 3


def test_without_an_atomic_exchange_the_old_is_moved_away(tmp_path, monkeypatch):
    import ctypes

    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: object())
    save(tmp_path / "b", 3)
    save(tmp_path / "b", 4)
    assert first(load(tmp_path / "b")) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


WRITE_FOREVER = """
import sys, numpy as np
from fxhlo.runtime.core.bundle import BundleWriter
from fxhlo.runtime.core.signature import Signature, Result
with BundleWriter(sys.argv[1]) as writer:
    writer.add_entry("main", b"new", Signature((), (Result("y", (64,), "float32"),)))
    writer.add_weights({"w": np.full(64, 9, np.float32)})
    print("half", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_leaves_the_old_bundle(tmp_path, monkeypatch):
    save(tmp_path / "b", 3)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(tmp_path / "b")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"half\n"
    monkeypatch.setattr(files, "ABANDONED_AFTER", -1.0)
    save(tmp_path / "b", 4)  # leaves the folder of a writer that lives
    assert len(list(tmp_path.iterdir())) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first(load(tmp_path / "b")) == 4
    (left,) = [path for path in tmp_path.iterdir() if path.name != "b"]
    with pytest.raises(BundleError, match="no bundle"):
        load(left)
    save(tmp_path / "b", 5)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


FULL_DISK = """
import resource, sys, numpy as np
from fxhlo.runtime.core.bundle import BundleWriter
from fxhlo.runtime.core.errors import BundleError
from fxhlo.runtime.core.signature import Signature, Result
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with BundleWriter(sys.argv[1]) as writer:
        writer.add_entry("main", b"new", Signature((), (Result("y", (64,), "float32"),)))
        writer.add_weights({"w": np.zeros(100_000, np.float32)})
except BundleError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_bundle(tmp_path):
    save(tmp_path / "b", 3)
    ran = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "b")], capture_output=True, text=True, timeout=60
    )
    assert ran.stdout.startswith("the bundle cannot be written: File too large"), ran.stderr
    assert "next: raise the limit" in ran.stdout
    assert first(load(tmp_path / "b")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_no_space_says_what_to_do(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match=r"cannot be written: No space left on device\n.*\n  next: free some space"):
        save(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


WRITE_MANY = """
import sys, numpy as np
from fxhlo.runtime.core.bundle import BundleWriter
from fxhlo.runtime.core.signature import Signature, Result
for turn in range(8):
    value = int(sys.argv[2]) * 100 + turn
    with BundleWriter(sys.argv[1], notes={"value": value}) as writer:
        writer.add_entry("main", b"module", Signature((), (Result("y", (64,), "float32"),)))
        writer.add_weights({"w": np.full(64, value, np.float32)})
    print(value, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.003, 0.007, 0.015])
def test_a_writer_killed_at_any_moment_leaves_a_whole_bundle(tmp_path, delay):
    process = subprocess.Popen([sys.executable, "-c", WRITE_MANY, str(tmp_path / "b"), "1"], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"100\n"
    time.sleep(delay)
    process.kill()
    process.wait()
    bundle = load(tmp_path / "b")
    bundle.verify()
    assert (bundle.weights()["w"] == bundle.manifest.notes["value"]).all()


def test_writers_in_parallel_leave_one_of_theirs(tmp_path):
    path = tmp_path / "b"
    with BundleWriter(path, notes={"value": 0}) as writer:
        writer.add_entry("main", b"module", Signature((), SIGNATURE.results))
        writer.add_weights({"w": np.zeros(64, np.float32)})
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE_MANY, str(path), str(number)], stdout=subprocess.DEVNULL)
        for number in (1, 2, 3)
    ]
    seen = set()
    while any(process.poll() is None for process in writers):
        bundle = load(path)  # there at every moment
        try:
            values = bundle.weights()["w"]
        except BundleError:
            continue  # replaced between the manifest and the weights: said, and never mixed
        assert (values == bundle.manifest.notes["value"]).all()
        seen.add(int(values[0]))
        time.sleep(0.002)
    assert all(process.returncode == 0 for process in writers)
    final = load(path)
    assert final.manifest.notes["value"] in (107, 207, 307)
    final.verify()
    assert len(seen) > 3
    assert [one.name for one in tmp_path.iterdir()] == ["b"]


def test_builds_are_added_in_parallel(tmp_path):
    with BundleWriter(tmp_path / "b") as writer:
        for index in range(8):
            writer.add_entry(f"e{index}", portable(), SIGNATURE)
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda index: load(tmp_path / "b").add_target(f"e{index}", "cpu", module=b"%d" % index), range(8))
        )
    bundle = load(tmp_path / "b")
    assert all(bundle.entries[f"e{index}"].builds["cpu"].module for index in range(8))
    bundle.verify()


def test_a_bundle_moves_and_copies(tmp_path, compiled):
    save(tmp_path / "b", executable=compiled)
    shutil.copytree(tmp_path / "b", tmp_path / "copy", copy_function=shutil.copy)
    shutil.rmtree(tmp_path / "b")
    assert first(load(tmp_path / "copy")) == 3
    load(tmp_path / "copy").verify()


def test_wrong_calls_name_the_argument(tmp_path, compiled):
    bundle = load(save(tmp_path / "b", executable=compiled))
    with pytest.raises(ShapeError, match=r"input x takes float32\[64\], and got float32\[63\]"):
        bundle(X[1:])

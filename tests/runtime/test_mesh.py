"""Meshes and shardings: what contradicts itself is refused, and they go through a bundle unchanged."""

import json

import numpy as np
import pytest

from fxhlo.runtime.core import pjrt, plugins
from fxhlo.runtime.core.bundle import BundleWriter, load
from fxhlo.runtime.core.errors import BundleError, SignatureError, UnsupportedError
from fxhlo.runtime.core.executable import Executable
from fxhlo.runtime.core.manifest import Manifest
from fxhlo.runtime.core.mesh import Mesh
from fxhlo.runtime.core.sharding import REPLICATED, Part, Sharding, Split
from fxhlo.runtime.core.signature import Argument, Result, Signature

MESH = Mesh((("data", 2), ("model", 4)))
COLUMN = Sharding(((), ("model",)))
SIGNATURE = Signature(
    (
        Argument("w", "weight", (3, 8), "float32", sharding=COLUMN),
        Argument("cache", "state", (16, 8), "bfloat16", 1, Sharding((("data", "model"), ()))),
        Argument("x", "input", (2, 3), "float32"),
    ),
    (
        Result("y", (2, 8), "float32", sharding=COLUMN),
        Result("cache", (16, 8), "bfloat16", 1, Sharding((("data", "model"), ()))),
    ),
    MESH,
)


def test_what_a_device_holds():
    assert (MESH.devices, Mesh().devices, MESH.size("model")) == (8, 1, 4)
    assert COLUMN.shard((3, 8), MESH) == (3, 2)
    assert Sharding((("data", "model"), ())).shard((16, 8), MESH) == (2, 8)
    assert REPLICATED.shard((5, 7), MESH) == (5, 7)
    assert Sharding(((), ())) == REPLICATED
    assert Sharding(((), ())).replicated


def test_they_print_as_shardy_does():
    assert str(MESH) == "data=2, model=4"
    assert str(Mesh()) == "one device"
    assert str(Sharding((("data", "model"), ()))) == '[{"data", "model"}, {}]'
    assert str(REPLICATED) == "replicated"
    assert '[{}, {"model"}]' in str(SIGNATURE)
    assert "sharding" not in str(Signature(SIGNATURE.arguments[2:], ()))


def test_they_are_shardys_own():
    """Shardy's parser takes what we print, on a mesh of the same name and sizes."""
    from jax.interpreters.mlir import make_ir_context

    from fxhlo.passes import mlir

    axes = ", ".join(f'"{name}"={size}' for name, size in MESH.axes)
    module = mlir.parse(
        f"""sdy.mesh @mesh = <[{axes}]>
        func.func public @main(%a: tensor<16x8xf32> {{sdy.sharding = #sdy.sharding<@mesh, {SIGNATURE.arguments[1].sharding}>}}) -> tensor<16x8xf32> {{
          return %a : tensor<16x8xf32> }}""",
        make_ir_context(),
    )
    assert module.operation.verify()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Mesh((("a", 2), ("a", 2))), "has an axis twice"),
        (lambda: Mesh((("a", 0),)), "axis 'a' of size 0"),
        (lambda: Mesh((("", 2),)), "axis '' of size 2"),
        (lambda: Mesh((("a", True),)), "of size True"),
        (lambda: MESH.size("expert"), "no axis 'expert'"),
        (lambda: Sharding((("model",), ("model",))), "splits two dimensions by one axis"),
        (lambda: COLUMN.shard((3, 6), MESH), r"splits \[3, 6\] unevenly: model has 4 devices"),
        (lambda: COLUMN.shard((8,), MESH), r"has 2 dimensions and the tensor \[8\] 1"),
        (lambda: Signature((Argument("w", "weight", (3, 8), "float32", sharding=COLUMN),), ()), r"w: float32\[3,8\]: the mesh one device has no axis 'model'"),
        (
            lambda: Signature((Argument("s", "state", (8, 8), "int8", 0, COLUMN),), (Result("s", (8, 8), "int8", 0),), MESH),
            r"is \[\{\}, \{\"model\"\}\] and its alias 0 \(s: int8\[8,8\]\) replicated",
        ),
    ],
)  # fmt: skip
def test_what_contradicts_itself(make, text):
    with pytest.raises(SignatureError, match=text):
        make()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("mesh",), [["data"]]), (("mesh",), {"data": 2}), (("mesh",), [["data", "2"]]), (("mesh",), [["data", 2]]),
        (("arguments", 0, "sharding"), [["model"]]), (("arguments", 0, "sharding"), ["", "model"]),
        (("arguments", 0, "sharding"), [[], ["expert"]]), (("arguments", 0, "sharding"), None),
        (("results", 1, "sharding"), []),
    ],
)  # fmt: skip
def test_json_that_is_refused(path, value):
    data = json.loads(json.dumps(SIGNATURE.to_json()))
    assert Signature.from_json(data) == SIGNATURE
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(SignatureError):
        Signature.from_json(data)


def write(path, *signatures):
    with BundleWriter(path) as writer:
        for index, signature in enumerate(signatures):
            writer.add_entry(f"e{index}", b"a module", signature)
    return load(path)


def test_a_bundle_keeps_mesh_and_shardings(tmp_path):
    bundle = write(tmp_path / "b", SIGNATURE)
    assert bundle.manifest.mesh == MESH
    assert bundle.entries["e0"].signature == SIGNATURE
    assert write(tmp_path / "one", Signature(SIGNATURE.arguments[2:], ())).manifest.mesh == Mesh()


def test_a_bundle_is_for_one_mesh(tmp_path):
    other = Signature(SIGNATURE.arguments[2:], (), Mesh((("data", 2),)))
    with pytest.raises(
        BundleError, match="entry 'e1' is for the mesh data=2, and the bundle's other entries are for data=2, model=4"
    ):
        write(tmp_path / "b", SIGNATURE, other)
    bundle = write(tmp_path / "c", SIGNATURE)
    entries = {**bundle.entries, "more": write(tmp_path / "d", other).entries["e0"]}
    (tmp_path / "c" / "manifest.json").write_bytes(Manifest("c", entries).text())
    with pytest.raises(BundleError, match="its entries are for different meshes"):
        load(tmp_path / "c")


def test_more_devices_than_there_are_are_refused(tmp_path):
    bundle = write(tmp_path / "b", SIGNATURE)
    here = pjrt.device_count()
    text = rf"the entry 'e0' runs on 8 devices \(data=2, model=4\), and this process has {here} of cpu\n.*\n  next: load it where there are 8"
    with pytest.raises(UnsupportedError, match=text) as caught:
        bundle["e0"]
    assert caught.value.where == str(bundle.path)


def test_an_executable_is_for_the_mesh_that_it_was_compiled_for():
    loaded = pjrt.compile("func.func public @main(%a: tensor<2xf32>) -> tensor<2xf32> { return %a : tensor<2xf32> }")
    vector = Signature(
        (Argument("a", "input", (2,), "float32"),), (Result("y", (2,), "float32"),), Mesh((("data", 2),))
    )
    with pytest.raises(
        UnsupportedError, match=r"main runs on a mesh \(data=2\), and was compiled for another \(one device\)"
    ):
        Executable(loaded, vector)
    (y,) = Executable(loaded, Signature(vector.arguments, vector.results, Mesh((("data", 1),))))(np.ones(2, np.float32))
    assert pjrt.get(y).tolist() == [1, 1]


def test_where_devices_stand_and_what_they_hold():
    assert [MESH.place(device) for device in (0, 3, 4)] == [
        {"data": 0, "model": 0},
        {"data": 0, "model": 3},
        {"data": 1, "model": 0},
    ]
    assert MESH.groups(("model",)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert MESH.groups(("data",)) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    whole = np.arange(64).reshape(8, 8)
    both = Sharding((("model",), ("data",)))
    pieces = [whole[both.index(whole.shape, MESH, device)] for device in range(8)]
    assert {piece.shape for piece in pieces} == {(2, 4)}
    assert (pieces[6] == whole[4:6, 4:8]).all()  # model 2, data 1
    assert (both.parts(MESH), COLUMN.parts(MESH), Sharding().parts(MESH)) == (8, 4, 1)


def test_fused_weights_are_arranged_so_that_a_device_has_a_piece_of_each():
    """Eight query heads and two heads of keys, one row each, on a mesh where each head of keys is copied to two devices."""
    mesh, every = Mesh((("kv", 2), ("rep", 2))), ("kv", "rep")
    split = Split(Sharding((every, ())), 0, (Part(8, every), Part(2, ("kv",)), Part(2, ("kv",))))
    rows = np.array([*range(8), 100, 101, 200, 201])[:, None]
    arranged = split.arranged(rows, mesh)
    assert arranged.shape == split.shape(rows.shape, mesh) == (16, 1)
    assert arranged[:, 0].reshape(4, 4).tolist() == [
        [0, 1, 100, 200],
        [2, 3, 100, 200],
        [4, 5, 101, 201],
        [6, 7, 101, 201],
    ]
    pieces = [split.piece(rows, mesh, device) for device in range(mesh.devices)]
    assert (np.concatenate(pieces) == arranged).all() and all(piece.flags.c_contiguous for piece in pieces)
    for device, piece in enumerate(pieces):
        along, across = split.stretches(rows.shape, mesh, device)
        assert (np.concatenate([rows[one] for one in along]) == piece).all() and across == (slice(0, 1),)
    assert (split.restored(arranged, mesh) == rows).all()
    with pytest.raises(SignatureError, match="unevenly"):
        Split(Sharding((every,)), 0, (Part(6, every),)).shape((6,), mesh)
    assert (Split().arranged(rows, mesh) == rows).all()


def test_a_mesh_of_more_devices_than_the_process_has_says_what_to_do():
    pjrt.device()  # fixes the number
    with pytest.raises(UnsupportedError, match=r"a mesh of 64 devices \(model=64\) does not fit") as caught:
        pjrt.device(mesh=Mesh((("model", 64),)))
    assert "fixed when the first was used" in str(caught.value)
    assert caught.value.next_step == "take a smaller mesh, or ask for this one first in a new process"


def test_a_number_of_cpu_devices_in_xla_flags_is_named(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{plugins.COUNT}=1")
    with pytest.raises(
        UnsupportedError, match=r"1 of cpu, as --xla_force_host_platform_device_count in XLA_FLAGS"
    ) as caught:
        pjrt.device(mesh=Mesh((("model", 64),)))
    assert "raise that number" in str(caught.value.next_step)

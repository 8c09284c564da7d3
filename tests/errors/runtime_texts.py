"""Cases of errors of the runtime: signatures, compilation, calls, bundles, the cache. See test_texts.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import fxhlo
from fxhlo.runtime.core import explain, pjrt, topology
from fxhlo.runtime.core.cache import Cache, digest
from fxhlo.runtime.core.dtypes import dtype_of
from fxhlo.runtime.core.errors import (
    BundleError,
    CacheError,
    CompileError,
    ExecutionError,
    FxhloError,
    OutOfMemoryError,
    ShapeError,
    SignatureError,
    TopologyError,
)
from fxhlo.runtime.core.executable import Executable
from fxhlo.runtime.core.signature import Argument, Result, Signature
from fxhlo.runtime.core.targets import Target


class Noisy(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(4)


X = np.ones(4, np.float32)


def noisy() -> Executable:
    return fxhlo.lower(Noisy(), (torch.ones(4),)).compile()


def saved(folder: Path) -> Path:
    fxhlo.lower(torch.nn.ReLU(), (torch.ones(4),)).save(folder)
    return folder


def of_another_version(folder: Path) -> Path:
    manifest = saved(folder) / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 99}))
    return folder


def too_large() -> None:
    """libtpu's own sentence (tests/tpu has the compiler say it)."""
    text = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 20.00G of 15.75G hbm."
    )
    with explain.explained("the compiler refused the module", CompileError):
        raise RuntimeError(text)


CASES: dict[str, tuple[type[FxhloError], Callable[[Path], object], str]] = {
    "a random op without a key": (
        ShapeError,
        lambda tmp: noisy()(X),
        """\
main takes 2 arguments and got 1; missing: rng_key
  next: it takes x, rng_key; the module draws random numbers from rng_key, int32[2]: another one for each call""",
    ),
    "a topology that the compiler does not know": (
        TopologyError,
        lambda tmp: topology.devices(Target.parse("tpu-v6e:3x5")),
        """\
libtpu gives no topology v6e:3x5: .*
  next: take sizes that are even, or 1, as in 2x2 or 4x4; three of them for v4, v5p and 7x""",
    ),
    "another shape": (
        ShapeError,
        lambda tmp: noisy()(X[1:], np.zeros(2, np.int32)),
        """\
input x takes float32[4], and got float32[3]
  next: a module takes the shapes that it was lowered for""",
    ),
    "another dtype": (
        ShapeError,
        lambda tmp: noisy()(X, np.zeros(2)),
        """\
input rng_key takes int32[2], and got float64[2]
  next: convert it: a call never converts dtypes""",
    ),
    "arguments of another number": (
        ExecutionError,
        lambda tmp: noisy().execute([pjrt.put(X)]),
        """\
the program failed: INVALID_ARGUMENT: Execution supplied 1 arguments but compiled program expected 2
  next: call the executable with the same arguments: it checks them, which this path leaves out""",
    ),
    "a module that is none": (
        CompileError,
        lambda tmp: pjrt.compile("module { func.func @main() { return 1 } }"),
        """\
XLA refused the module: .*error: expected operation name in quotes
  at: REFUSED
  next: correct the module; where fxhlo made it, report a bug of fxhlo and add that file""",
    ),
    "a custom call that nobody registered": (
        CompileError,
        lambda tmp: pjrt.compile(
            "module { func.func @main(%a: tensor<2xf32>) -> tensor<2xf32> { "
            "%0 = stablehlo.custom_call @nobody(%a) : (tensor<2xf32>) -> tensor<2xf32> "
            "return %0 : tensor<2xf32> } }"
        ),
        """\
XLA refused the module: NOT_FOUND: No registered implementation for untyped custom call to nobody for Host
  at: REFUSED
  next: register the custom call first (fxhlo's own: pass custom_calls), or legalize for this target""",
    ),
    "more memory than there is": (
        OutOfMemoryError,
        lambda tmp: too_large(),
        """\
the compiler refused the module: it needs 20.00 GiB of HBM, and the device has 15.75 GiB, 4.25 GiB too little
  next: take a smaller bucket or cache, or a target with more memory""",
    ),
    "a dtype that is none": (
        SignatureError,
        lambda tmp: dtype_of("floot32"),
        """\
there is no dtype 'floot32'
  next: use a name of numpy or ml_dtypes, such as float32 or bfloat16""",
    ),
    "two arguments of one name": (
        SignatureError,
        lambda tmp: Signature((Argument("x", "input", (4,), "float32"),) * 2, (Result("y", (4,), "float32"),)),
        """\
two arguments are named 'x'
  next: give each a name of its own""",
    ),
    "no bundle": (
        BundleError,
        lambda tmp: fxhlo.load(tmp / "nowhere"),
        """\
there is no such folder
  at: TMP/nowhere
  next: name the folder that fxhlo.lower(...).save(DIR) or lower-model MODEL -o DIR wrote""",
    ),
    "no such entry": (
        BundleError,
        lambda tmp: fxhlo.load(saved(tmp / "b"))["tokens=8"],
        """\
there is no entry 'tokens=8'
  at: TMP/b
  next: there are main""",
    ),
    "a bundle of another version": (
        BundleError,
        lambda tmp: fxhlo.load(of_another_version(tmp / "b")),
        """\
the bundle has format version 99, and this fxhlo reads version 2
  at: TMP/b/manifest.json
  next: update fxhlo, or make the bundle again""",
    ),
    "a folder that holds something else": (
        BundleError,
        lambda tmp: (tmp / "notes.txt").write_text("mine") and saved(tmp),
        """\
there is something else than a bundle, and it is not overwritten
  at: TMP
  next: choose another folder, or empty this one""",
    ),
    "a cache key that JSON lacks": (
        CacheError,
        lambda tmp: digest({"options": {1, 2}}),
        """\
a cache key must be JSON: Object of type set is not JSON serializable
  next: use strings, numbers, lists and dicts""",
    ),
    "a cache entry that was not built": (
        CacheError,
        lambda tmp: Cache(tmp).put({"a": 1}, lambda path: None),
        """\
`build` wrote no cache entry
  at: TMP/.*/content
  next: `build(path)` writes a file or a folder to that path""",
    ),
}

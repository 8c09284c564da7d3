"""Cases of errors of a lowering: from torch or JAX to StableHLO. See test_texts.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import torch
from torch.export import Dim

import fxhlo
import fxhlo.jax
from fxhlo.kernels import catalog
from fxhlo.kernels.spec import Implementation
from fxhlo.lowering import errors
from fxhlo.lowering.registry import rule
from fxhlo.passes import torch_private
from fxhlo.passes.contract import ContractError
from fxhlo.passes.hlo import legalize
from fxhlo.passes.hlo.legalize import LegalizeError
from fxhlo.runtime.core import seal
from fxhlo.runtime.core.errors import FxhloError, ShapeError, UnsupportedError
from fxhlo.runtime.core.seal import SealedError

X = torch.ones(4, 4)


class Module(torch.nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> object:
        return self.function(*args)


def several_things(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    mask = x > 0
    return (
        x[mask],
        torch.linalg.eigvals(x).abs() + 0,
        torch.linalg.eigvals(x + 1).abs() + 0,
        torch.unique(x),
    )


class Longer(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] > 3 else x


class Growing(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if 2 * x.shape[0] > self.table.shape[0]:
            self.table = torch.arange(2.0 * x.shape[0])
        return x.sum() + self.table.sum()


class Sliced(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(18.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table[: x.shape[0], None]


torch.library.define("fxhlo_errors::broken", "(Tensor x) -> Tensor")
torch.library.impl("fxhlo_errors::broken", "CompositeExplicitAutograd")(lambda x: x.clone())
torch.library.register_fake("fxhlo_errors::broken")(lambda x: torch.empty_like(x))
rule("fxhlo_errors.broken.default")(lambda ctx, x: fxhlo.lowering.build.convert(x, torch.int32))
torch.library.define("fxhlo_errors::unknown", "(Tensor x) -> Tensor")
torch.library.register_fake("fxhlo_errors::unknown")(lambda x: torch.empty_like(x))


def sealed() -> None:
    with seal.closed("the engine is serving"):
        fxhlo.lower(Module(torch.neg), (X,))


def broken_kernel() -> None:
    """A kernel that does not keep what its `supports` promised."""

    def broken(values: object, weight: object) -> object:
        raise ValueError("tile of 7 rows")

    kernels = dict(catalog.kernels())
    kernels["fxhlo.linear"] = replace(
        kernels["fxhlo.linear"], implementations=(Implementation("cpu", "broken", broken),)
    )
    hlo = fxhlo.lower(Module(lambda x, w: torch.ops.fxhlo.linear(x, w, None)), (X, X))
    with mock.patch.object(legalize, "kernels", return_value=kernels):
        hlo.legalized()


def another_torch() -> None:
    with torch_private._known_interfaces():
        from torch._subclasses import moved_away  # noqa: F401


CASES: dict[str, tuple[type[FxhloError], Callable[[Path], object], str]] = {
    "everything at once": (
        ContractError,
        lambda tmp: fxhlo.lower(Module(several_things), (X,)),
        """\
3 kinds of ops cannot be lowered:
  aten.linalg_eig.default (2x) at HERE: eigenvalues of general matrices need LAPACK, which a portable module cannot call; symmetric ones: torch.linalg.eigh
  aten._unique2.default (1x) at HERE: its result's shape depends on data; a compiled module's shapes are fixed: use a masked form such as torch.where
  aten.index.Tensor (1x) at HERE: its result's shape depends on data; a compiled module's shapes are fixed: use a masked form such as torch.where
  at: HERE
  next: change the model at these lines as the reasons say""",
    ),
    "a size that repeats decide": (
        ContractError,
        lambda tmp: fxhlo.lower(Module(lambda x, n: x.repeat_interleave(n, 0)), (X, torch.tensor([1, 2, 3, 0]))),
        """\
1 kinds of ops cannot be lowered:
  aten.repeat_interleave.Tensor (1x) at HERE: its result's shape depends on the repeats: pass output_size, their sum
  at: HERE
  next: change the model at these lines as the reasons say""",
    ),
    "an op of one's own": (
        ContractError,
        lambda tmp: fxhlo.lower(Module(lambda x: torch.ops.fxhlo_errors.unknown(x)), (X,)),
        """\
1 kinds of ops cannot be lowered:
  fxhlo_errors.unknown.default (1x) at HERE
  at: HERE
  next: add a rule as docs/add_an_op.md shows, or replace the op in the model""",
    ),
    "an op of one's own and one that depends on data": (
        ContractError,
        lambda tmp: fxhlo.lower(Module(lambda x: torch.ops.fxhlo_errors.unknown(torch.nonzero(x).float())), (X,)),
        """\
2 kinds of ops cannot be lowered:
  aten.nonzero.default (1x) at HERE: its result's shape depends on data; a compiled module's shapes are fixed: use a masked form such as torch.where
  fxhlo_errors.unknown.default (1x) at HERE
  at: HERE
  next: add a rule as docs/add_an_op.md shows, or replace the op in the model; where a reason stands, change the model""",
    ),
    "a torch that is not as we know it": (
        torch_private.TorchVersionError,
        lambda tmp: another_torch(),
        """\
torch .* lacks a private interface that fxhlo's capture needs (cannot import name 'moved_away' from 'torch._subclasses' .*); \
it was tried with torch 2.13.0
  next: pip install torch==2.13.0""",
    ),
    "no module": (
        errors.CaptureError,
        lambda tmp: fxhlo.lower(several_things, (X,)),  # type: ignore[arg-type]
        """\
lower takes an nn.Module or an ExportedProgram, not function
  next: wrap a function in an nn.Module whose forward calls it""",
    ),
    "a branch on a value": (
        errors.CaptureError,
        lambda tmp: fxhlo.lower(Module(lambda x: x if x.sum() > 0 else -x), (X,)),
        """\
torch.export could not capture Module: GuardOnDataDependentSymNode: .*
  at: HERE
  next: a value decides there what the model's Python does: compute both ways and choose by torch.where, or use torch.cond""",
    ),
    "a distribution that checks": (
        errors.CaptureError,
        lambda tmp: fxhlo.lower(
            Module(lambda x: torch.distributions.Normal(x, x, validate_args=True).log_prob(x)), (X,)
        ),
        """\
torch.export could not capture Module: GuardOnDataDependentSymNode: .*
  at: HERE
  next: the distribution checks its parameters' values: make it with validate_args=False""",
    ),
    "a child that is scripted": (
        errors.CaptureError,
        lambda tmp: fxhlo.lower(torch.nn.Sequential(torch.jit.script(torch.nn.Linear(4, 4))), (X,)),
        """\
Sequential.0 is compiled by torch.jit.script, and its Python is gone: torch.export cannot trace it.*
  next: build the model with the module that was scripted, and load the weights by load_state_dict""",
    ),
    "a mask beside an index": (
        errors.CaptureError,
        lambda tmp: fxhlo.lower(Module(lambda x, mask, ids: x[mask, ids]), (X, X[0] > 0, torch.arange(4))),
        """\
Module picks elements by a boolean mask beside another index: how many depends on data, and a compiled module's shapes are fixed
  at: HERE
  next: index by integers, or keep all elements and choose by torch.where""",
    ),
    "a table that grows": (
        errors.CaptureError,
        lambda tmp: fxhlo.lower(Growing(), (X,)),
        """\
the buffer table is assigned a value of shape [8] in forward, and it is [2]; a compiled module's state keeps its shape
  at: HERE
  next: make it large enough when the model is built, and take a slice of it in forward""",
    ),
    "a table that ends before the size does": (
        errors.CaptureError,
        lambda tmp: fxhlo.lower(Sliced(), (X,), dynamic_shapes=({0: Dim("n")},)),
        """\
Sliced does not allow these dynamic_shapes: Not all values of n = L['x'].size()[0] in the specified range satisfy the generated guard .*18
  at: HERE
  next: in dynamic_shapes, as torch suggests: n = Dim('n', max=18)""",
    ),
    "a loop over a size": (
        errors.CaptureError,
        lambda tmp: fxhlo.lower(
            Module(lambda x: sum(x[:, place] for place in range(x.shape[1]))), (X,), dynamic_shapes=(({1: Dim("n")},),)
        ),
        """\
Module does not allow these dynamic_shapes: You marked n as dynamic but your code specialized it to be a constant (4).
  at: HERE
  next: give that size as a static one (no dynamic_shapes entry), or write the line without a number: \
x.shape[0] ** 0.5 for math.sqrt(x.shape[0]), an op over the dimension for a loop""",
    ),
    "a nested tensor": (
        errors.CaptureError,
        lambda tmp: fxhlo.lower(Module(torch.neg), (torch.nested.nested_tensor([X, X[:2]], layout=torch.jagged),)),
        """\
args[0] is a nested tensor; StableHLO has dense tensors
  next: pass the plain tensors that it is made of, and build it in forward: padded values with their lengths or mask""",
    ),
    "softmax of integers": (
        errors.LoweringError,
        lambda tmp: fxhlo.lower(Module(lambda x: x.softmax(0)), (torch.arange(4),)),
        """\
softmax of int64, which eager torch does not compute either
  at: HERE
  next: pass a dtype: x.softmax(dim, dtype=torch.float32)""",
    ),
    "a size that squeezes": (
        errors.GuardError,
        lambda tmp: fxhlo.lower(
            Module(lambda x: x.squeeze(1)), (X,), dynamic_shapes=(({1: Dim("n")},),), bindings={"n": 1}
        ),
        """\
n=1 was not captured: at that size aten.squeeze.dim gives [4], where the capture has [4, 1]
  at: HERE
  next: lower it again with an example of that size and without dynamic_shapes for it, or bind another size""",
    ),
    "sizes that are open": (
        errors.GuardError,
        lambda tmp: fxhlo.lower(Module(torch.neg), (X,), dynamic_shapes=(({0: Dim("rows")},),)).text,
        """\
StableHLO's text has numbers, and the size of rows is not bound
  next: hlo.bind(rows=...).text; or hlo.compile(), which compiles a program for each shape that it is called with""",
    ),
    "out of range": (
        errors.GuardError,
        lambda tmp: fxhlo.lower(
            Module(torch.neg), (X,), dynamic_shapes=(({0: Dim("rows", max=8)},),), bindings={"rows": 9}
        ),
        """\
dimension rows is bound to 9, but was captured for 0 to 8
  next: bind a size in that range, or capture with a wider one (dynamic_shapes)""",
    ),
    "a guard": (
        errors.GuardError,
        lambda tmp: fxhlo.lower(Longer(), (X,), dynamic_shapes=({0: Dim.AUTO},), bindings={"x.0": 3}),
        """\
dimension x.0 is bound to 3, but was captured for 4 and more
  at: HERE
  next: bind a size in that range, or capture with a wider one (dynamic_shapes)""",
    ),
    "no such dimension": (
        errors.GuardError,
        lambda tmp: fxhlo.lower(Module(torch.neg), (X,), bindings={"rows": 9}),
        """\
there is no dimension 'rows'; dimensions: none: every size is static
  next: name one of these in bindings""",
    ),
    "a rule that is wrong": (
        errors.LoweringError,
        lambda tmp: fxhlo.lower(Module(lambda x: torch.ops.fxhlo_errors.broken(x)), (X,)),
        """\
the rule of fxhlo_errors.broken.default built [4, 4] torch.int32 where the graph says [4, 4] torch.float32
  at: HERE
  next: correct the rule: see docs/add_an_op.md""",
    ),
    "a dtype that StableHLO lacks": (
        errors.LoweringError,
        lambda tmp: fxhlo.lower(Module(lambda x: x.to(torch.complex32)), (X,)),
        """\
torch.complex32 has no StableHLO element type
  next: convert the tensor to a supported dtype""",
    ),
    "as many values as a mask has": (
        UnsupportedError,
        lambda tmp: fxhlo.lower(Module(lambda x, y: torch.index_put(x, [x > 0], y)), (X, torch.ones(16))),
        """\
an assignment through a mask takes one value per True element, and their number depends on data
  at: HERE
  next: assign one value, or use torch.where(mask, values, x) with values of x's shape""",
    ),
    "a target that is not there": (
        UnsupportedError,
        lambda tmp: fxhlo.lower(Module(torch.neg), (X,), target="cpuu"),
        """\
there is no target 'cpuu'
  next: did you mean cpu or cuda? targets are cpu, tpu-v4, tpu-v5e, tpu-v5p, tpu-v6e, tpu-7x, cuda, cuda-a100, cuda-h100, cuda-h200, cuda-b200; TPUs take a topology, as tpu-v6e:2x2""",  # noqa: E501
    ),
    "a topology that is none": (
        UnsupportedError,
        lambda tmp: fxhlo.lower(Module(torch.neg), (X,), target="tpu-v6e:4"),
        """\
'4' is no topology of tpu-v6e: it takes 2 sizes
  next: for instance tpu-v6e:2x2""",
    ),
    "traced while it serves": (
        SealedError,
        lambda tmp: sealed(),
        """\
a model was about to be traced after the engine is serving: all programs are made before
  next: report this as a bug of fxhlo: the closed set of programs lacks one""",
    ),
    "a kernel that breaks its promise": (
        LegalizeError,
        lambda tmp: broken_kernel(),
        """\
broken of fxhlo.linear says it supports float32[4, 4], float32[4, 4] on cpu and failed: tile of 7 rows
  next: its supports() must give a reason for these operands; report this as a bug of fxhlo""",
    ),
    "a symbolic shape in JAX": (
        ShapeError,
        lambda tmp: jax.export.export(jax.jit(fxhlo.jax.silu_and_mul))(
            jax.ShapeDtypeStruct(jax.export.symbolic_shape("n, 8"), jnp.float32)
        ),
        """\
silu_and_mul: values has the symbolic shape (n, 8)
  next: lower one module per size""",
    ),
    "a dtype of JAX that torch lacks": (
        ShapeError,
        lambda tmp: fxhlo.jax.lower(fxhlo.jax.silu_and_mul, jax.ShapeDtypeStruct((4, 8), jnp.int4)),
        """\
silu_and_mul: values is int4, a dtype that torch does not have
  next: convert it""",
    ),
}

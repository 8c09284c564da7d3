"""Lowering from scratch: fxhlo's whole path in one file that runs. Read it from the top.

    python docs/lowering_from_scratch.py            # what every stage makes of a small model
    python docs/lowering_from_scratch.py --all      # with the modules in full

    nn.Module --capture--> Program --passes--> Program --emit--> HloModule --legalize--> module --compile--> Executable

It needs torch and jax, and nothing of fxhlo: the nouns and the verbs are the same, what is left out is width. Where fxhlo has
472 rules, here are 14; each section names the files that are its grown-up form.
"""

from __future__ import annotations

import functools
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import func, stablehlo
from jaxlib import xla_client
from jaxlib.mlir._mlir_libs import _jax_mlir_ext
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

aten = torch.ops.aten


# -- 1. The model ------------------------------------------------------------------------------------------------------
#
# It has what makes lowering interesting: weights, a size that is only known later (how many tokens), an activation that
# deserves a kernel, and a buffer that a call changes in place.


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.up = nn.Linear(8, 32, bias=False)
        self.down = nn.Linear(16, 8)
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        normed = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6)
        both = self.up(normed)
        hidden = hidden + self.down(nn.functional.silu(both[:, :16]) * both[:, 16:])
        self.seen.add_(hidden.sum(0))
        return hidden + self.seen


# -- 2. Errors -----------------------------------------------------------------------------------------------------------
#
# What is wrong, where (the user's file and line), what to do next. [runtime/core/errors.py]


class FxhloError(Exception):
    def __init__(self, message: str, *, where: str | None = None, next_step: str | None = None) -> None:
        super().__init__(
            message + (f"\n  at: {where}" if where else "") + (f"\n  next: {next_step}" if next_step else "")
        )


# -- 3. Kernels ----------------------------------------------------------------------------------------------------------
#
# A kernel is a named op with a torch schema and a reference in plain torch. It has implementations per target, each with a
# `supports` that gives a reason where it does not fit. The reference makes the op run in eager torch today, and becomes the
# decomposition of a `stablehlo.composite` tomorrow, so the two can never mean different things. [kernels/spec.py]


@dataclass(frozen=True)
class Implementation:
    target: str
    lower: Callable[..., Any]  # of JAX arrays
    supports: Callable[..., str | None]  # None, or why not


@dataclass(frozen=True)
class Kernel:
    name: str
    schema: str
    reference: Callable[..., Tensor]
    implementations: tuple[Implementation, ...] = ()


def silu_and_mul(values: Tensor) -> Tensor:
    size = values.shape[1] // 2
    return aten.silu(values[:, :size]) * values[:, size:]


def fused_in_jax(values: Any) -> Any:
    gate, up = jax.numpy.split(values, 2, axis=1)
    return gate * jax.nn.sigmoid(gate) * up


def four_rows(values: Any) -> str | None:
    return None if values.shape[0] >= 4 else f"it takes 4 rows and more, not {values.shape[0]}"


KERNELS = {
    "scratch.silu_and_mul": Kernel(
        "silu_and_mul",
        "silu_and_mul(Tensor values) -> Tensor",
        silu_and_mul,
        (Implementation("cpu", fused_in_jax, four_rows),),
    )
}
LIBRARY = torch.library.Library("scratch", "DEF")
for _kernel in KERNELS.values():
    LIBRARY.define(_kernel.schema)
    LIBRARY.impl(_kernel.name, _kernel.reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"scratch::{_kernel.name}", _kernel.reference, lib=LIBRARY)


# -- 4. The Program ------------------------------------------------------------------------------------------------------
#
# A captured model: an FX graph of ATen ops, a name and a kind for everything that goes in, and for every result which argument
# it updates. Each node carries a fake tensor (its type) and the line that made it. [passes/program.py]


@dataclass(frozen=True)
class Argument:
    name: str
    kind: str  # weight, buffer or input


@dataclass(frozen=True)
class Result:
    name: str
    updates: str | None = None  # the argument whose new value this is


@dataclass(frozen=True)
class Program:
    module: fx.GraphModule
    arguments: tuple[Argument, ...]
    results: tuple[Result, ...]
    dims: dict[str, Any] = field(default_factory=dict)  # name -> symbol
    tensors: dict[str, Tensor] = field(default_factory=dict)  # weights and buffers by name

    @property
    def placeholders(self) -> list[fx.Node]:
        return [node for node in self.module.graph.nodes if node.op == "placeholder"]


def where(node: fx.Node) -> str | None:
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return ":".join(frames[-1]) if frames else None


# -- 5. Capture ----------------------------------------------------------------------------------------------------------
#
# torch.export traces the model with fake tensors and makes it functional: `seen.add_` becomes one more result, and the
# signature says that it is the new value of `seen`. Decomposition takes big ops apart, but not those that we want whole.
# fxhlo captures vLLM's models by make_fx instead; both ways end in the same Program. [lowering/capture/]

KINDS = {InputKind.PARAMETER: "weight", InputKind.BUFFER: "buffer", InputKind.USER_INPUT: "input"}
MUTATIONS = (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)


def capture(model: nn.Module, args: tuple[Any, ...], dynamic_shapes: Any = None) -> Program:
    exported = torch.export.export(model, args, dynamic_shapes=dynamic_shapes)
    table = torch.export.default_decompositions()
    del table[aten.silu.default]
    return from_exported(exported.run_decompositions(table), dynamic_shapes)


def from_exported(exported: ExportedProgram, dynamic_shapes: Any) -> Program:
    signature = exported.graph_signature
    arguments = [Argument(spec.target or spec.arg.name, KINDS[spec.kind]) for spec in signature.input_specs]
    results = [
        Result(f"{spec.target}.updated", updates=spec.target) if spec.kind in MUTATIONS else Result(spec.arg.name)
        for spec in signature.output_specs
    ]
    tensors = {one.name: exported.state_dict[one.name] for one in arguments if one.kind in ("weight", "buffer")}
    program = Program(exported.graph_module, tuple(arguments), tuple(results), {}, tensors)
    inputs = [node for node, one in zip(program.placeholders, arguments, strict=True) if one.kind == "input"]
    for node, shapes in zip(inputs, dynamic_shapes or (), strict=False):
        for dim, named in (shapes or {}).items():
            program.dims[named.__name__] = node.meta["val"].shape[dim].node.expr
    return program


# -- 6. Passes -----------------------------------------------------------------------------------------------------------
#
# A pass is a frozen dataclass from Program to Program. It puts kernels in place of what a model writes out, and as a kernel has
# a reference, every Program still runs in eager torch after every pass: that is how passes are tested. [passes/fx]


@dataclass(frozen=True)
class SiluAndMul:
    """mul(silu(x[:, :n]), x[:, n:]) becomes the kernel."""

    def __call__(self, program: Program) -> Program:
        module = fx.GraphModule(program.module, program.module.graph.__deepcopy__({}))
        for node in list(module.graph.nodes):
            source = self._source(node)
            if source is not None:
                with module.graph.inserting_before(node):
                    fused = module.graph.call_function(torch.ops.scratch.silu_and_mul.default, (source,))
                fused.meta = dict(node.meta)
                node.replace_all_uses_with(fused)
        module.graph.eliminate_dead_code()
        module.recompile()
        return replace(program, module=module)

    def _source(self, node: fx.Node) -> fx.Node | None:
        """x, where `node` is the product of its two halves, the first through silu."""
        if node.target is not aten.mul.Tensor or getattr(node.args[0], "target", None) is not aten.silu.default:
            return None
        first, second = node.args[0].args[0], node.args[1]
        if not all(isinstance(half, fx.Node) and half.target is aten.slice.Tensor for half in (first, second)):
            return None
        x, columns = first.args[0], first.args[0].meta["val"].shape[-1]
        halves = ((x, 1, 0, columns // 2), (x, 1, columns // 2))
        return x if first.args == halves[0] and second.args[:3] == halves[1] else None


# -- 7. Rules ------------------------------------------------------------------------------------------------------------
#
# A rule lowers one exact ATen overload. It gets values, plain Python numbers, and a context that holds the result's type: it
# infers nothing. Parameters have the names of the ATen schema. [lowering/registry.py, lowering/ops]

ELEMENTS = {torch.float32: "f32", torch.int64: "i64", torch.bool: "i1"}
RULES: dict[str, Callable[..., Value]] = {}


def mlir_type(shape: Sequence[int], dtype: torch.dtype) -> ir.Type:
    return ir.Type.parse(f"tensor<{''.join(f'{size}x' for size in shape)}{ELEMENTS[dtype]}>")


@dataclass(frozen=True)
class Value:
    """An SSA value with its torch type beside it."""

    ir: Any
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Context:
    """What the graph says that the op gives."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    emitter: Emitter

    def value(self, result: Any) -> Value:
        return Value(result, self.shape, self.dtype)

    @property
    def type(self) -> ir.Type:
        return mlir_type(self.shape, self.dtype)


def rule(*overloads: str) -> Callable[[Callable[..., Value]], Callable[..., Value]]:
    def register(function: Callable[..., Value]) -> Callable[..., Value]:
        for overload in overloads:
            assert RULES.setdefault(overload, function) is function, f"{overload} has two rules"
        return function

    return register


def full(shape: Sequence[int], dtype: torch.dtype, number: Any) -> Value:
    type_ = ir.RankedTensorType(mlir_type(shape, dtype))
    element = ir.FloatAttr.get if dtype.is_floating_point else ir.IntegerAttr.get
    splat = ir.DenseElementsAttr.get_splat(type_, element(type_.element_type, number))
    return Value(stablehlo.ConstantOp(splat).result, tuple(shape), dtype)


def broadcast(operand: Value | float, shape: tuple[int, ...], dtype: torch.dtype) -> Value:
    """`operand` in the result's shape, its dimensions matched from the last one on, as torch does."""
    if not isinstance(operand, Value):
        return full(shape, dtype, operand)
    dims = range(len(shape) - len(operand.shape), len(shape))
    dims = ir.DenseI64ArrayAttr.get(list(dims))
    return Value(stablehlo.broadcast_in_dim(mlir_type(shape, dtype), operand.ir, dims), shape, dtype)


def binary(op: Callable[..., Any], ctx: Context, self: Value, other: Value | float) -> Value:
    left, right = (broadcast(one, ctx.shape, ctx.dtype) for one in (self, other))
    return ctx.value(op(left.ir, right.ir))


def unary(op: Callable[..., Any], ctx: Context, self: Value) -> Value:
    return ctx.value(op(self.ir))


for _name, _op in {"add": stablehlo.add, "mul": stablehlo.multiply}.items():  # rows of a table, where an op is one line
    rule(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")(functools.partial(binary, _op))
rule("aten.rsqrt.default")(functools.partial(unary, stablehlo.rsqrt))


@rule("aten.silu.default")
def silu(ctx: Context, self: Value) -> Value:
    return ctx.value(stablehlo.multiply(self.ir, stablehlo.logistic(self.ir)))


@rule("aten.pow.Tensor_Scalar")
def pow_scalar(ctx: Context, self: Value, exponent: float) -> Value:
    return ctx.value(stablehlo.power(self.ir, full(self.shape, self.dtype, exponent).ir))


@rule("aten.permute.default")
def permute(ctx: Context, self: Value, dims: Sequence[int]) -> Value:
    return ctx.value(stablehlo.transpose(self.ir, ir.DenseI64ArrayAttr.get(list(dims))))


@rule("aten.slice.Tensor")
def slice_(ctx: Context, self: Value, dim: int = 0, start: int = 0, end: int | None = None, step: int = 1) -> Value:
    starts, limits, strides = [0] * len(self.shape), list(self.shape), [1] * len(self.shape)
    starts[dim], limits[dim], strides[dim] = start, min(self.shape[dim], end or self.shape[dim]), step
    return ctx.value(stablehlo.slice(self.ir, *(ir.DenseI64ArrayAttr.get(one) for one in (starts, limits, strides))))


@rule("aten.mm.default")
def mm(ctx: Context, self: Value, mat2: Value) -> Value:
    numbers = stablehlo.DotDimensionNumbers.get([], [], [1], [0])
    return ctx.value(stablehlo.dot_general(ctx.type, self.ir, mat2.ir, numbers))


@rule("aten.addmm.default")
def addmm(ctx: Context, self: Value, mat1: Value, mat2: Value) -> Value:
    return binary(stablehlo.add, ctx, mm(ctx, mat1, mat2), self)


@rule("aten.sum.dim_IntList")
def sum_(ctx: Context, self: Value, dim: Sequence[int], keepdim: bool = False) -> Value:
    dims = [one % len(self.shape) for one in dim]
    kept = [size for at, size in enumerate(self.shape) if at not in dims]
    zero = full((), self.dtype, 0)
    scalar = mlir_type((), self.dtype)
    op = stablehlo.ReduceOp([mlir_type(kept, self.dtype)], [self.ir], [zero.ir], ir.DenseI64ArrayAttr.get(dims))
    block = op.regions[0].blocks.append(scalar, scalar)
    with ir.InsertionPoint(block):
        stablehlo.return_([stablehlo.add(*block.arguments)])
    return ctx.value(stablehlo.reshape(ctx.type, op.results[0]))


@rule("aten.mean.dim")
def mean(ctx: Context, self: Value, dim: Sequence[int], keepdim: bool = False) -> Value:
    count = np.prod([self.shape[one] for one in dim])
    return binary(stablehlo.divide, ctx, sum_(ctx, self, dim, keepdim), float(count))


@rule("aten.embedding.default")
def embedding(ctx: Context, weight: Value, indices: Value) -> Value:
    rank = len(indices.shape)
    numbers = stablehlo.GatherDimensionNumbers.get(
        offset_dims=[rank], collapsed_slice_dims=[0], operand_batching_dims=[], start_indices_batching_dims=[],
        start_index_map=[0], index_vector_dim=rank,
    )  # fmt: skip
    sizes = ir.DenseI64ArrayAttr.get([1, weight.shape[1]])
    return ctx.value(stablehlo.gather(weight.ir, indices.ir, numbers, sizes))


# -- 8. The contract -----------------------------------------------------------------------------------------------------
#
# Between the graph and emission: everything that has no rule is said at once, with count, place and near misses.
# [passes/contract.py, lowering/emit/coverage.py]


def is_symbolic(node: fx.Node) -> bool:
    """Whether the node computes a size: it is bound to a number, and needs no rule."""
    return isinstance(node.meta.get("val"), torch.SymInt | int)


def check(program: Program) -> None:
    ops = [node for node in program.module.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    missing = [node for node in ops if not is_symbolic(node) and str(node.target) not in RULES | KERNELS_RULES]
    counts = Counter(str(node.target) for node in missing)
    places = {str(node.target): where(node) for node in reversed(missing)}
    if missing:
        near = {name: [other for other in RULES if other.split(".")[1] == name.split(".")[1]] for name in counts}
        lines = [f"  {name} ({count}x) at {places[name]}; near: {near[name]}" for name, count in counts.most_common()]
        raise FxhloError(
            f"{len(counts)} kinds of ops cannot be lowered:\n" + "\n".join(lines),
            next_step="add a rule, or replace the op in the model",
        )


# -- 9. Emission ---------------------------------------------------------------------------------------------------------
#
# One walk over the graph. Sizes are bound to numbers here, so that one Program gives a module for each size without a second
# trace. What a rule built is compared with what the graph says: a mistake stops at its own op, with the user's line. An argument
# that a result updates is aliased to it, so that PJRT can do it in place. [lowering/emit/emit.py, lowering/emit/signature.py]


@dataclass(frozen=True)
class HloModule:
    module: ir.Module
    program: Program

    @property
    def bytecode(self) -> bytes:
        out = io.BytesIO()
        self.module.operation.write_bytecode(file=out)
        return out.getvalue()


def context() -> ir.Context:
    made = ir.Context()
    registry = ir.DialectRegistry()
    _jax_mlir_ext.register_dialects(registry)
    made.append_dialect_registry(registry)
    made.load_all_available_dialects()
    stablehlo.register_dialect(made)
    return made


def emit(program: Program, bindings: Mapping[str, int] | None = None) -> HloModule:
    if unknown := set(bindings or {}) - set(program.dims):
        raise FxhloError(f"there is no dimension {unknown.pop()!r}", next_step=f"name one of {', '.join(program.dims)}")
    return Emitter(program, {program.dims[name]: size for name, size in (bindings or {}).items()}).module()


@dataclass
class Emitter:
    program: Program
    sizes: dict[Any, int]  # symbol -> number
    functions: dict[Any, str] = field(default_factory=dict)  # decompositions of composites

    def number(self, size: Any) -> Any:
        if not isinstance(size, torch.SymInt):
            return size
        bound = size.node.expr.subs(self.sizes)
        return int(bound) if bound.is_number else int(size.node.hint)

    def context_of(self, node: fx.Node) -> Context:
        fake = node.meta["val"]
        return Context(tuple(self.number(size) for size in fake.shape), fake.dtype, self)

    def module(self) -> HloModule:
        program = self.program
        with context(), ir.Location.unknown():
            module = ir.Module.create()
            self.block = module.body
            main = self.function("main", program.module.graph, program.placeholders)
            main.attributes["arg_attrs"] = ir.ArrayAttr.get([self.attributes(one) for one in program.arguments])
            module.operation.verify()
        return HloModule(module, program)

    def attributes(self, argument: Argument) -> ir.Attribute:
        """The argument's name, and which result takes its place."""
        found = {"scratch.name": ir.StringAttr.get(argument.name)}
        for index, result in enumerate(self.program.results):
            if result.updates == argument.name:
                found["tf.aliasing_output"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(32), index)
        return ir.DictAttr.get(found)

    def function(self, symbol: str, graph: fx.Graph, placeholders: Sequence[fx.Node]) -> func.FuncOp:
        """The graph as a function of the module."""
        types = [self.context_of(node) for node in placeholders]
        output = next(node for node in graph.nodes if node.op == "output")
        results = [self.context_of(node).type for node in output.args[0]]
        with ir.InsertionPoint(self.block):
            function = func.FuncOp(symbol, ([one.type for one in types], results))
            function.attributes["sym_visibility"] = ir.StringAttr.get("public" if symbol == "main" else "private")
        block = function.add_entry_block()
        values = {node: ctx.value(arg) for node, ctx, arg in zip(placeholders, types, block.arguments, strict=True)}
        with ir.InsertionPoint(block):
            for node in graph.nodes:
                if is_symbolic(node):
                    values[node] = self.number(node.meta["val"])
                elif node.op == "call_function":
                    values[node] = self.call(node, values)
            func.ReturnOp([values[node].ir for node in output.args[0]])
        return function

    def call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Value:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        name, ctx = str(node.target), self.context_of(node)
        file, _, line = (where(node) or "unknown:0").rpartition(":")
        with ir.Location.file(file, int(line), 0):
            result = (RULES | KERNELS_RULES)[name](ctx, *args, **kwargs)
        if (result.shape, result.dtype, result.ir.type) != (ctx.shape, ctx.dtype, ctx.type):
            raise FxhloError(
                f"the rule of {name} built {result.ir.type}, and the graph says {ctx.type}", where=where(node)
            )
        return result


# A kernel's op has one rule for all of them: a composite, whose decomposition is the reference, traced for these types. Whoever
# takes StableHLO can run it without knowing the kernel. [lowering/emit/composite.py, lowering/emit/trace.py]


def composite(kernel: Kernel, ctx: Context, *values: Value) -> Value:
    types = tuple((value.shape, value.dtype) for value in values)
    emitter = ctx.emitter
    symbol = emitter.functions.get((kernel.name, types))
    if symbol is None:
        symbol = emitter.functions[kernel.name, types] = f"{kernel.name}_{len(emitter.functions)}"
        fakes = [torch.empty(shape, dtype=dtype) for shape, dtype in types]
        traced = torch.fx.experimental.proxy_tensor.make_fx(lambda *x: (kernel.reference(*x),), tracing_mode="fake")(
            *fakes
        )
        emitter.function(symbol, traced.graph, [node for node in traced.graph.nodes if node.op == "placeholder"])
    op = stablehlo.CompositeOp(
        [ctx.type], [value.ir for value in values], name=f"scratch.{kernel.name}", decomposition=symbol, version=1,
        num_composite_regions=0,
    )  # fmt: skip
    return ctx.value(op.results[0])


KERNELS_RULES = {f"{name}.default": functools.partial(composite, kernel) for name, kernel in KERNELS.items()}


# -- 10. Legalization ----------------------------------------------------------------------------------------------------
#
# The portable module is the same for every target. Only now does somebody look at the target: each composite becomes a call of
# the first implementation that takes it, or of its reference, and the reason is kept. [passes/hlo/legalize.py]


@dataclass(frozen=True)
class Decision:
    kernel: str
    became: str
    reason: str | None = None


def legalize(hlo: HloModule, target: str) -> tuple[HloModule, list[Decision]]:
    decisions = []
    module = ir.Module.parse(hlo.bytecode, context())  # a copy: the portable one stays as it is
    with module.context, ir.Location.unknown():
        for operation in list(_operations(module.operation)):
            if operation.name == "stablehlo.composite":
                symbol, decision = choose(operation, target, module)
                decisions.append(decision)
                with ir.InsertionPoint(operation), operation.location:
                    types = [result.type for result in operation.results]
                    call = func.CallOp(types, ir.FlatSymbolRefAttr.get(symbol), list(operation.operands))
                for old, new in zip(operation.results, call.results, strict=True):
                    old.replace_all_uses_with(new)
                operation.erase()
        module.operation.verify()
    return HloModule(module, hlo.program), decisions


def choose(operation: ir.Operation, target: str, module: ir.Module) -> tuple[str, Decision]:
    """The function that takes the composite's place."""
    name = ir.StringAttr(operation.attributes["name"]).value
    reason = f"no implementation for {target}"
    for implementation in KERNELS[name].implementations:
        if implementation.target == target:
            specs = [
                jax.ShapeDtypeStruct(ir.RankedTensorType(one.type).shape, np.float32) for one in operation.operands
            ]
            reason = implementation.supports(*specs)
            if reason is None:
                text = jax.jit(implementation.lower).lower(*specs).as_text()
                return adopt(text, module), Decision(name, implementation.lower.__name__)
    return ir.FlatSymbolRefAttr(operation.attributes["decomposition"]).value, Decision(name, "reference", reason)


def adopt(text: str, module: ir.Module) -> str:
    """Moves the functions of a module that JAX made behind our own; returns the name that its `main` has there."""
    prefix = f"adopted_{len(list(module.body.operations))}"
    made = ir.Module.parse(re.sub(r"@(\w+)", rf"@{prefix}_\1", text))
    for function in list(made.body.operations):
        function.attributes["sym_visibility"] = ir.StringAttr.get("private")
        function.detach_from_parent()
        module.body.append(function)
    return f"{prefix}_main"


def _operations(operation: ir.Operation) -> Iterator[ir.Operation]:
    for region in operation.regions:
        for block in region.blocks:
            for child in block.operations:
                yield child.operation
                yield from _operations(child.operation)


# -- 11. Run -------------------------------------------------------------------------------------------------------------
#
# PJRT compiles the module for a device. Weights and buffers are placed once; a call takes inputs alone. A buffer that the
# module updates is donated: PJRT writes its new value where the old one was, and the next call gets it. [runtime/core/executable.py]


class Executable:
    def __init__(self, hlo: HloModule) -> None:
        self.device = jax.devices("cpu")[0]
        devices = xla_client.DeviceList((self.device,))
        self.loaded = self.device.client.compile_and_load(hlo.bytecode, devices, xla_client.CompileOptions())
        self.program = hlo.program
        self.bound = {name: self._place(tensor) for name, tensor in hlo.program.tensors.items()}

    def __call__(self, *inputs: Tensor) -> list[Any]:
        given = iter(inputs)
        buffers = [
            self._place(next(given)) if argument.kind == "input" else self.bound[argument.name]
            for argument in self.program.arguments
        ]
        shards = self.loaded.execute_sharded(buffers).disassemble_into_single_device_arrays()
        results = dict(zip(self.program.results, (shard[0] for shard in shards), strict=True))
        self.bound.update({result.updates: value for result, value in results.items() if result.updates})
        return [value for result, value in results.items() if not result.updates]

    def _place(self, tensor: Tensor) -> Any:
        with jax.enable_x64(True):  # an int64 stays one
            return jax.device_put(np.array(tensor.detach()), self.device)


# -- 12. The whole path --------------------------------------------------------------------------------------------------


def lower(program: Program, bindings: Mapping[str, int] | None = None) -> HloModule:  # [lowering/lower.py]
    """Passes, contract, emission."""
    for rewrite in (SiluAndMul(),):
        program = rewrite(program)
    check(program)
    return emit(program, bindings)


def main(show_all: bool = False) -> None:
    torch.manual_seed(0)
    model, tokens = Model(), torch.tensor([3, 1, 4, 1, 5])
    program = capture(model, (tokens,), ({0: Dim("tokens", min=2, max=64)},))
    print(
        f"capture    {len(program.module.graph.nodes)} nodes, results {', '.join(one.name for one in program.results)}"
    )
    for size in (5, 3):
        portable = lower(program, {"tokens": size})
        legal, (decision,) = legalize(portable, "cpu")
        lines = str(portable.module).splitlines()
        print(f"\nemit       tokens={size}, {len(lines)} lines, among them")
        print("\n".join(lines if show_all else [line[:130] for line in lines if "composite" in line]))
        print(
            f"legalize   {decision.kernel} became {decision.became}"
            + (f": {decision.reason}" if decision.reason else "")
        )
        model.seen.zero_()
        executable = Executable(legal)
        for call in range(3):
            before, inputs = executable.bound["seen"], (torch.arange(size) + call) % 16
            (ours,) = executable(inputs)
            torch.testing.assert_close(torch.from_numpy(np.array(ours)), model(inputs).detach())
            torch.testing.assert_close(torch.from_numpy(np.array(executable.bound["seen"])), model.seen)
            assert before.is_deleted()
        print("run        three calls give what eager torch gives; `seen` was updated in place")


if __name__ == "__main__":
    main("--all" in sys.argv)

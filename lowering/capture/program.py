"""Capture: from an nn.Module, an ExportedProgram or a callable to a Program. The one file that touches torch's
tracing internals (torch.export, make_fx, fake tensors, the shape environment).

Guaranteed: the graph is functional (mutations of inputs and buffers are extra results), holds no Python of the
model, every node has a fake value, the user's file and line and the module path; no weight is read.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter, getitem
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx
from torch._C import DispatchKey
from torch._higher_order_ops import flex_attention
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.export import ExportedProgram
from torch.export._trace import _export
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.symbolic_shapes import DimDynamic, GuardOnDataDependentSymNode, ShapeEnv
from torch.utils import _pytree as pytree

from ...kernels.catalog import register_torch_ops
from ...passes.contract import is_symbolic
from ...passes.functional import functional_graph
from ...passes.fx.random_key import DISTRIBUTIONS
from ...passes.program import Argument, Dim, Guard, Program, Result, lazy_module
from ...runtime.core import seal
from ...runtime.core.errors import FxhloError
from ..decompositions.attention import flex_attention as expanded_flex_attention
from ..decompositions.expansions import EXPANSIONS
from ..decompositions.table import decompositions
from ..emit.emit import SILENT
from ..errors import CaptureError
from ..left_out import SHAPE, reasons
from ..registry import find_rule, overload_name, rules
from .exported import decomposable, is_wrapped
from .stand_ins import forward_through, standing_in

TRIED = ("2.13.0",)
"""Versions of torch that this file was tried with."""

captures = 0
"""How many times this process traced a model: a serving process must not add to it once it is ready."""

FRAMES = 4
"""How many lines of the user's code, from the call outwards, are kept on a node."""

_KINDS = {
    InputKind.PARAMETER: "weight",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
    InputKind.USER_INPUT: "input",
}


def capture(
    module: torch.nn.Module | ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> Program:
    """Captures a module by torch.export, or takes an ExportedProgram as it is, and decomposes it.

    args, kwargs: example inputs; real or fake. dynamic_shapes: as torch.export takes it.
    """
    register_torch_ops()
    if isinstance(module, ExportedProgram):
        return from_exported(module)
    if not isinstance(module, torch.nn.Module):
        raise CaptureError(
            f"lower takes an nn.Module or an ExportedProgram, not {type(module).__name__}",
            next_step="wrap a function in an nn.Module whose forward calls it",
        )
    _count()
    try:
        with _lines_kept() as keep, standing_in(module, keep):
            exported = _exported(module, tuple(args), dict(kwargs or {}), dynamic_shapes)
    except Exception as problem:
        raise CaptureError(
            f"torch.export could not capture {type(module).__name__}: {_first_lines(problem)}",
            where=_user_frame(problem),
            next_step=_advice(problem),
        ) from problem
    return from_exported(exported, _dim_names(module, args, kwargs, dynamic_shapes))


@contextmanager
def _lines_kept() -> Iterator[Callable[[FrameType | None], None]]:
    """torch.export notes the lines of functions called `forward` alone; the functions of frames that are shown to `keep` count too."""
    anchors = fx.proxy._STACK_TRACE_ANCHORS
    before = set(anchors)

    def keep(frame: FrameType | None) -> None:
        while frame is not None and frame.f_code.co_name != "forward":
            if "/torch/" not in frame.f_code.co_filename:
                anchors.add((frame.f_code.co_filename, frame.f_code.co_name))
            frame = frame.f_back

    try:
        yield keep
    finally:
        anchors.intersection_update(before)


_LOST = ("fake tensor in the exported program constant's list", "object has no attribute 'constant'")
"""What torch.export says where it lost a tensor that torch.func or torch.autograd made: it records above them."""


def _exported(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    """torch.export's program; where that lost the inside of torch.func.grad or torch.autograd.grad, the one it records below them."""
    try:
        exported = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except NotImplementedError as problem:
        if "FlexAttention does not support backward on CPU" not in str(problem):
            raise
        with torch.no_grad():
            return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as problem:
        if not any(text in str(problem) for text in _LOST):
            raise
    else:
        if not any(is_wrapped(constant) for constant in exported.constants.values()):
            return exported

    # Results that want gradients would bring their own backward into the graph.
    def detached(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, forward(*args, **kwargs))

    with forward_through(module, detached):
        return _export(module, args, kwargs, dynamic_shapes, strict=False, pre_dispatch=False)


def _advice(problem: Exception) -> str:
    if "Cache'>" in str(problem):
        return (
            "build the model with use_cache=False, or register its cache: "
            "transformers.integrations.executorch.register_dynamic_cache_export_support()"
        )
    if isinstance(problem, GuardOnDataDependentSymNode):
        return "a value decides there what the model's Python does: compute both ways and choose by torch.where, or use torch.cond"
    if isinstance(problem, DynamicOutputShapeException):
        return f"use another op: {reasons().get(str(problem.func), SHAPE)}"
    return "make the module exportable: torch.export.export(module, args) shows the whole story"


def _count() -> None:
    """Notes that a model is traced; raises SealedError in a process that promised not to."""
    global captures
    seal.check("a model was about to be traced")
    captures += 1


def from_exported(exported: ExportedProgram, dim_names: Sequence[Mapping[int, str]] = ()) -> Program:
    """A Program from an ExportedProgram, decomposed to the ops that have rules.

    dim_names: per user input, what the user called its symbolic dimensions.
    """
    register_torch_ops()
    given, exported = exported, _decomposed(exported)
    module = exported.graph_module
    if exported is not given:  # the user's own graph is shared and never edited: dead code goes with the passes' copies
        _take_out_tokens(module.graph)
        _take_out_assertions(module.graph)
        module = lazy_module(module, module.graph)
    inputs = [spec for spec in exported.graph_signature.input_specs if spec.kind is not InputKind.TOKEN]
    outputs = [spec for spec in exported.graph_signature.output_specs if spec.kind is not OutputKind.TOKEN]
    placeholders = {node.name: node for node in module.graph.nodes if node.op == "placeholder"}
    arguments, tensors = [], {}
    for spec in inputs:
        if spec.kind not in _KINDS:
            raise CaptureError(
                f"the exported program has an input of kind {spec.kind.name} ({spec.arg.name})",
                next_step="export without custom objects",
            )
        name = spec.target if spec.target is not None else spec.arg.name
        _check_layout(name, placeholders[spec.arg.name].meta.get("val"))
        arguments.append(Argument(name, _KINDS[spec.kind]))  # type: ignore[arg-type]
        if spec.target is not None:
            tensors[name] = _tensor_of(exported, spec)
    results = []
    names = {spec.arg.name: argument.name for spec, argument in zip(inputs, arguments, strict=True)}
    for index, spec in enumerate(outputs):
        if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION):
            results.append(Result(f"{spec.target}.updated", updates=spec.target))
        elif spec.kind is OutputKind.USER_INPUT_MUTATION:
            results.append(Result(f"{spec.target}.updated", updates=names[spec.target]))
        else:
            results.append(Result(getattr(spec.arg, "name", None) or f"output_{index}"))
    results = _unique(results)
    dims, guards = _dims_of_exported(exported, dim_names)
    program = _without_none(Program(module, tuple(arguments), tuple(results), dims, guards, tensors))
    program.check()
    return program


def _check_layout(name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor) and (value.layout is not torch.strided or value.is_quantized):
        layout = "quantized" if value.is_quantized else str(value.layout).removeprefix("torch.")
        raise CaptureError(
            f"{name} is a {layout} tensor; StableHLO has dense ones",
            next_step=f"pass {'its integers and scales' if value.is_quantized else 'it dense, as to_dense() makes it'}",
        )


def _without_none(program: Program) -> Program:
    """None is no result, as JAX has it. Raises CaptureError for a result that is neither None nor a tensor nor a number."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    values = [value.meta["val"] if isinstance(value, fx.Node) else value for value in output.args[0]]
    for result, value in zip(program.results, values, strict=True):
        if value is not None and not isinstance(
            value, torch.Tensor | int | float | torch.SymInt | torch.SymFloat | torch.SymBool
        ):
            raise CaptureError(
                f"the result {result.name} is {value!r}, which no array can hold",
                next_step="return tensors, numbers and None, in any nesting",
            )
    kept = [index for index, value in enumerate(values) if value is not None]
    if len(kept) == len(values):
        return program

    def drop(graph: fx.Graph) -> None:
        copied = next(node for node in graph.nodes if node.op == "output")
        copied.args = (tuple(copied.args[0][index] for index in kept),)

    return program.edited(drop, results=tuple(program.results[index] for index in kept))


def _take_out_assertions(graph: fx.Graph) -> None:
    """Assertions of the trace give nothing and carry no value: what they ask of sizes is in the guards."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node.meta.get("val") is None and overload_name(node.target) in SILENT:
            graph.erase_node(node)


def _take_out_tokens(graph: fx.Graph) -> None:
    """Calls that torch orders by tokens become plain calls: a module has no effects, and what asks for one has no rule."""
    tokens = set()
    for node in list(graph.nodes):
        if node.target is not torch.ops.higher_order.with_effects:
            continue
        token, op, *args = node.args
        tokens.add(token)
        with graph.inserting_before(node):
            plain = graph.call_function(op, tuple(args), dict(node.kwargs))
        plain.meta = {**node.meta, "val": node.meta["val"][1] if len(node.meta["val"]) > 1 else None}
        for user in list(node.users):
            index: Any = user.args[1]
            if index == 0:
                tokens.add(user)
            else:
                user.replace_all_uses_with(plain)
                graph.erase_node(user)
        node.args = ()
        node.kwargs = {}
        tokens.add(node)
    if not tokens:
        return
    output = next(node for node in graph.nodes if node.op == "output")
    outputs: Any = output.args[0]
    output.args = (tuple(value for value in outputs if value not in tokens),)
    for node in reversed(list(graph.nodes)):
        if node in tokens and not node.users:
            graph.erase_node(node)


def _decomposed(exported: ExportedProgram) -> ExportedProgram:
    if _has_rules_only(exported):
        return exported
    exported = decomposable(exported)
    try:
        with _taken_apart_by_us():
            return exported.run_decompositions(decompositions())
    except Exception as problem:
        hint = "the program's decomposition failed inside torch: exported.run_decompositions() shows the whole story"
        if "expected compiled_fn to be GraphModule" in str(problem):
            hint = "a tensor that the model changes in place is a part of another one, or passed twice: take the part in forward, pass it once"
        raise CaptureError(
            f"torch could not decompose the exported program: {_first_lines(problem)}", next_step=hint
        ) from problem


def _has_rules_only(exported: ExportedProgram) -> bool:
    """Whether the user has decomposed the program already, and to nothing but ops that have rules.

    torch's decomposition traces every op again, which takes thirty times as long as the rest of lowering does.
    """
    tokens = any(spec.kind is InputKind.TOKEN for spec in exported.graph_signature.input_specs)
    # Fresh from torch.export a program is "TRAINING": views and in-place updates stand in it as the model has them.
    if tokens or exported.dialect != "ATEN":
        return False
    ops = (node.target for node in exported.graph.nodes if node.op == "call_function" and not is_symbolic(node))
    return all(
        target is getitem or (isinstance(target, torch._ops.OpOverload) and _needs_nothing(target)) for target in ops
    )


def _needs_nothing(target: torch._ops.OpOverload) -> bool:
    return not target._schema.is_mutable and (
        target in DISTRIBUTIONS or overload_name(target) in SILENT or find_rule(target) is not None
    )


def _unique(results: list[Result]) -> list[Result]:
    seen: set[str] = set()
    unique = []
    for index, result in enumerate(results):
        name = result.name if result.name not in seen else f"{result.name}.{index}"
        seen.add(name)
        unique.append(Result(name, result.updates))
    return unique


def _tensor_of(exported: ExportedProgram, spec: Any) -> torch.Tensor:
    if spec.target in exported.state_dict:
        return exported.state_dict[spec.target]
    return exported.constants[spec.target]


def _dims_of_exported(
    exported: ExportedProgram, dim_names: Sequence[Mapping[int, str]]
) -> tuple[tuple[Dim, ...], tuple[Guard, ...]]:
    """The free symbols of the placeholders, named as the user named them, with their ranges and the guards on them."""
    inputs = [spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    given = dict(zip(inputs, dim_names, strict=False))
    aliases: dict[Any, list[str]] = {}
    names: dict[Any, str] = {}
    environment = None
    for node in exported.graph_module.graph.nodes:
        if node.op != "placeholder":
            continue
        val = node.meta.get("val")
        for index, size in enumerate(val.shape if isinstance(val, torch.Tensor) else [val]):
            if not isinstance(size, torch.SymInt):
                continue
            environment = size.node.shape_env
            for symbol in sorted(
                size.node.expr.free_symbols, key=str
            ):  # more than the symbol itself where the size is derived, as 2 * n
                aliases.setdefault(symbol, [])
                if size.node.expr.is_symbol:
                    aliases[symbol].append(f"{node.name}.{index}" if isinstance(val, torch.Tensor) else node.name)
                if index in given.get(node.name, {}):
                    names.setdefault(symbol, given[node.name][index])
    dims = []
    for symbol, places in aliases.items():
        allowed = exported.range_constraints.get(symbol)
        hint = environment.backed_var_to_val.get(symbol) if environment is not None else None
        dims.append(
            Dim(
                name=names.get(symbol) or (places or [str(symbol)])[0],
                symbol=symbol,
                minimum=_bound(allowed.lower if allowed is not None else 0) or 0,
                maximum=_bound(allowed.upper) if allowed is not None else None,
                hint=None if hint is None else int(hint),
                aliases=tuple(places),
            )
        )
    return tuple(dims), _guards(environment, {dim.symbol for dim in dims})


def _dim_names(
    module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> list[dict[int, str]]:
    """For each leaf of the inputs, in order, the names of its dimensions: `Dim("batch")`, and the root of a derived one.

    dynamic_shapes was accepted by torch.export; its entries are found as torch finds them, by argument name or place.
    """
    from torch.export import dynamic_shapes as torch_shapes

    if not dynamic_shapes:
        return []
    if hasattr(dynamic_shapes, "dynamic_shapes"):  # ShapesCollection, AdditionalInputs
        dynamic_shapes = dynamic_shapes.dynamic_shapes(module, tuple(args), dict(kwargs or {}))
    inputs = torch_shapes._combine_args(module, tuple(args), dict(kwargs or {}))
    if isinstance(dynamic_shapes, tuple | list):
        dynamic_shapes = dict(zip(inputs, dynamic_shapes, strict=True))
    order = [name for name in inputs if name not in (kwargs or {})] + [name for name in kwargs or {} if name in inputs]
    inputs, dynamic_shapes = (
        {name: tree[name] for name in order} for tree in (inputs, dynamic_shapes)
    )  # the graph's order
    found: list[dict[int, str]] = []

    def note(path: Any, leaf: Any, shape: Any = None) -> None:
        parts = (
            dict(shape)
            if isinstance(shape, Mapping)
            else dict(enumerate(shape))
            if isinstance(shape, tuple | list)
            else {0: shape}
        )
        dims = {index: getattr(dim, "root", dim) for index, dim in parts.items()}
        found.append({index: dim.__name__ for index, dim in dims.items() if isinstance(dim, torch.export.Dim)})

    torch_shapes._tree_map_with_path(note, inputs, dynamic_shapes)
    return found


def _bound(number: Any) -> int | None:
    """A bound of a range as a number; None where it is infinite."""
    return int(number) if getattr(number, "is_Integer", isinstance(number, int)) and number < 2**62 else None


def _guards(environment: ShapeEnv | None, symbols: set) -> tuple[Guard, ...]:
    if environment is None:
        return ()
    found = []
    for guard in environment.guards:
        if guard.expr.free_symbols and guard.expr.free_symbols <= symbols:
            found.append(Guard(guard.expr, _frame(guard)))
    return tuple(found)


def _frame(guard: Any) -> str | None:
    """ "file:line" of the user's code that made a guard, where torch noted one."""
    frame: Any = getattr(guard.sloc, "framework_loc", None)  # the innermost frame outside the machinery of tracing
    if hasattr(frame, "filename") and "/torch/" not in frame.filename:
        return f"{frame.filename}:{frame.lineno}"
    found = re.search(r"([^\s\"]+\.py)\"?(?::|, line )(\d+)", str(getattr(guard.sloc, "maybe_user_loc", None) or ""))
    return f"{found[1]}:{found[2]}" if found else None


def _first_lines(problem: BaseException, count: int = 3) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: " + " ".join(lines[:count])


# -- callables over a module: vLLM's models -----------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """An input of a captured callable: its sizes (a name for a symbolic one), its dtype."""

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype


def capture_callable(
    function: Callable[..., torch.Tensor],
    module: torch.nn.Module,
    inputs: Sequence[Input],
    ranges: Mapping[str, tuple[int, int]],
    *,
    results: Sequence[str] = ("output",),
    name: str = "main",
) -> Program:
    """Captures `function(*inputs)`, which may call `module` in any way, with the module's parameters as arguments.

    ranges: for each symbolic size its smallest and greatest number. Sizes of weights stay static. The module's
    parameters may be on the meta device.
    """
    register_torch_ops()
    _count()
    environment = ShapeEnv(duck_shape=False, specialize_zero_one=False)
    fake_mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True, static_shapes=False)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    parameters = set(dict(module.named_parameters()))
    with fake_mode:
        fakes = [_fake_weight(fake_mode, tensor) for tensor in named.values()]
    dims, symbolic = _symbolic_inputs(environment, fake_mode, inputs, ranges)
    try:
        graph_module = _trace(function, module, list(named), fakes, symbolic, fake_mode)
    except FxhloError:
        raise
    except Exception as problem:
        raise CaptureError(
            f"{name} could not be captured: {_first_lines(problem)}",
            where=_user_frame(problem),
            next_step="this model uses Python that depends on tensor values; see the cause above",
        ) from problem
    arguments = [Argument(weight, "weight" if weight in parameters else "buffer") for weight in named]
    arguments += [Argument(entry.name, "input") for entry in inputs]
    graph_module, outcome = _take_out_mutations(graph_module, arguments, [Result(result) for result in results])
    program = Program(
        graph_module, tuple(arguments), outcome, dims, _guards(environment, {dim.symbol for dim in dims}), named, name
    )
    program.check()
    return program


def _fake_weight(fake_mode: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    """A fake tensor with static sizes, on the CPU whatever the tensor's device is."""
    return torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device="cpu")


def _symbolic_inputs(
    environment: ShapeEnv, fake_mode: FakeTensorMode, inputs: Sequence[Input], ranges: Mapping[str, tuple[int, int]]
) -> tuple[tuple[Dim, ...], list[torch.Tensor]]:
    """Fake inputs; a size with the same name is the same symbol everywhere."""
    from torch._dynamo.source import ConstantSource

    sizes: dict[str, torch.SymInt] = {}
    dims = []
    for number, (name, (low, high)) in enumerate(ranges.items()):
        hint = min(97 + 14 * number, high - number)  # sizes that coincide with nothing else
        symbol = environment.create_symbol(
            hint, ConstantSource(name), DimDynamic.DYNAMIC, None, do_not_specialize_zero_one=True
        )
        size = environment.create_symintnode(symbol, hint=hint, source=ConstantSource(name))
        assert isinstance(size, torch.SymInt)
        sizes[name] = size
        environment.constrain_symbol_range(symbol, low, high)
        dims.append(Dim(name, symbol, low, high, hint))
    with fake_mode:
        tensors = [
            torch.empty([sizes[size] if isinstance(size, str) else size for size in entry.shape], dtype=entry.dtype)
            for entry in inputs
        ]
    return tuple(dims), tensors


def _trace(
    function: Callable,
    module: torch.nn.Module,
    names: list[str],
    weights: list[torch.Tensor],
    inputs: list[torch.Tensor],
    fake_mode: FakeTensorMode,
) -> fx.GraphModule:
    def flat(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parameters = dict(zip(names, values[: len(names)], strict=True))
        with (
            torch.nn.utils.stateless._reparametrize_module(module, parameters, tie_weights=True),
            _module_paths(module),
        ):
            results = function(*values[len(names) :])
        return tuple(results) if isinstance(results, tuple | list) else (results,)

    # Sizes 0 and 1 are to be like any other: without this, checks for broadcasting guard every symbol to be 2 or more.
    oblivious = torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), oblivious, _taken_apart_by_us():
        return functional_graph(flat, [*weights, *inputs], table=decompositions(), watched=_Watched())


@contextmanager
def _taken_apart_by_us() -> Iterator[None]:
    """Python kernels of torch take some ops apart below any decomposition table, with other results than ATen's: they are set aside.
    flex_attention, a region around two functions of the model, becomes what eager torch computes."""
    ops = [*EXPANSIONS, *(attrgetter(name)(torch.ops) for name in rules() if "upsample" in name)]
    kernels: dict[Any, Any] = {op: dict(op.py_kernels) for op in [*ops, flex_attention]}
    try:
        for op in ops:
            for key in (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd):
                op.py_kernels.pop(key, None)
            op._dispatch_cache.clear()
        flex_attention.py_kernels[DispatchKey.Autograd] = expanded_flex_attention
        flex_attention._dispatch_cache.clear()
        yield
    finally:
        for op, before in kernels.items():
            op.py_kernels.update(before)
            op._dispatch_cache.clear()


class _Watched(torch.overrides.TorchFunctionMode):
    """Sees every call of torch in the model: notes the line that makes it, and takes functional overloads.

    Custom ops that return an operand they changed cannot be functionalized: where such an op has a functional `default`
    overload with the same parameters (vLLM's `maybe_inplace` ones do), that one is traced instead.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            isinstance(func, torch._ops.OpOverload)
            and func._schema.is_mutable
            and func.namespace not in ("aten", "prims")
        ):
            default = getattr(func.overloadpacket, "default", None)
            if default is not None and not default._schema.is_mutable and _parameters(default) == _parameters(func):
                func = default
        fx.traceback.current_meta["stack_trace"] = _stack(sys._getframe(1))
        if func is torch.nn.functional.linear:
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear`, which makes numbers of the sizes of [1, tokens, features] where there is a bias."""
    if bias is None or input.ndim < 3:
        return torch.nn.functional.linear(input, weight, bias)
    rows = torch.nn.functional.linear(input.flatten(0, -2), weight, bias)
    return rows.reshape(*input.shape[:-1], weight.shape[0])


def _stack(frame: FrameType | None) -> str:
    """The innermost frames outside torch, as a traceback prints them. torch's own record of it takes a third of a trace."""
    lines: list[str] = []
    while frame is not None and len(lines) < FRAMES and frame.f_code.co_filename != __file__:
        file = frame.f_code.co_filename
        if "/torch/" not in file and not file.startswith("<"):
            lines.append(f'File "{file}", line {frame.f_lineno}, in {frame.f_code.co_name}')
        frame = frame.f_back
    return "\n".join(reversed(lines))


def _parameters(overload: torch._ops.OpOverload) -> list[str]:
    return [argument.name for argument in overload._schema.arguments]


@contextmanager
def _module_paths(module: torch.nn.Module) -> Any:
    """Notes on every node which submodule made it, as torch.export does."""
    paths = {id(child): path for path, child in module.named_modules()}
    stack: list[tuple[str, Any]] = []

    def note() -> None:
        fx.traceback.current_meta["nn_module_stack"] = {path: (path, kind) for path, kind in stack}

    def enter(child: torch.nn.Module, args: Any) -> None:
        stack.append((paths.get(id(child), ""), type(child)))
        note()

    def leave(child: torch.nn.Module, args: Any, output: Any) -> None:
        stack.pop()
        note()

    children = list(module.modules())
    hooks = [child.register_forward_pre_hook(enter) for child in children]
    hooks += [child.register_forward_hook(leave) for child in children]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _take_out_mutations(
    graph_module: fx.GraphModule, arguments: Sequence[Argument], results: Sequence[Result]
) -> tuple[fx.GraphModule, tuple[Result, ...]]:
    """Functionalization leaves `copy_(placeholder, value)` behind for each mutated argument: makes it a result."""
    graph = graph_module.graph
    names = {
        node: argument.name
        for node, argument in zip((n for n in graph.nodes if n.op == "placeholder"), arguments, strict=True)
    }
    updates = [node for node in graph.nodes if node.target is torch.ops.aten.copy_.default and node.args[0] in names]
    output = next(node for node in graph.nodes if node.op == "output")
    outputs = list(output.args[0])
    for node in updates:
        outputs.append(node.args[1])
        results = [*results, Result(f"{names[node.args[0]]}.updated", updates=names[node.args[0]])]
    output.args = (tuple(outputs),)
    for node in updates:
        node.replace_all_uses_with(node.args[1], delete_user_cb=lambda user: user is not output)
        graph.erase_node(node)
    _take_out_assertions(graph)
    graph.eliminate_dead_code()
    return fx.GraphModule(graph_module, graph), tuple(results)


_OURS = f"{Path(__file__).parents[1]}/"


def _user_frame(problem: BaseException) -> str | None:
    import traceback

    frames = [
        frame
        for frame in traceback.extract_tb(problem.__traceback__)
        if not any(part in frame.filename for part in ("/torch/", "/fxhlo/", _OURS, "<"))
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None

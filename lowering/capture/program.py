"""Turns a captured graph into a Program: arguments, results, symbolic dimensions and guards.

Guaranteed: the graph is functional (mutations of inputs and buffers are extra results) and holds no Python of the model;
every node has a fake value, the user's file and line, and the module path; no weight is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from ...passes.contract import SILENT
from ...passes.program import Argument, Dim, Guard, Program, Result
from ...passes.torch_private import ShapeEnv, ShapeGuard
from ..errors import CaptureError
from ..registry import overload_name
from .results import renumbered
from .sizes import Sizes


def check_layout(name: str, value: object) -> None:
    """Raises CaptureError for a sparse, nested or quantized tensor."""
    if isinstance(value, torch.Tensor) and (value.layout is not torch.strided or value.is_quantized):
        layout = "quantized" if value.is_quantized else str(value.layout).removeprefix("torch.")
        raise CaptureError(
            f"{name} is a {layout} tensor; StableHLO has dense ones",
            next_step=f"pass {'its integers and scales' if value.is_quantized else 'it dense, as to_dense() makes it'}",
        )


def without_none(program: Program) -> Program:
    """Removes None from the results of `main`, as JAX does; the structure still has it.

    Raises CaptureError for a result that is not None, a tensor or a number.
    """
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

    places = {index: place for place, index in enumerate(kept)}
    structure = program.structure and renumbered(program.structure, places)
    return program.edited(drop, results=tuple(program.results[index] for index in kept), structure=structure)


def erase_assertions(graph: fx.Graph) -> None:
    """Removes the trace's assertions, which have no result: the guards hold their conditions on sizes."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node.meta.get("val") is None and overload_name(node.target) in SILENT:
            graph.erase_node(node)


def erase_tokens(graph: fx.Graph) -> None:
    """Replaces calls that torch orders by effect tokens with plain calls: a lowered module has no effects, and effectful ops no rule."""
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


def unique_names(results: list[Result]) -> list[Result]:
    seen: set[str] = set()
    unique = []
    for index, result in enumerate(results):
        name = result.name if result.name not in seen else f"{result.name}.{index}"
        seen.add(name)
        unique.append(Result(name, result.updates))
    return unique


def mutations_as_results(
    graph_module: fx.GraphModule, arguments: Sequence[Argument], results: Sequence[Result]
) -> tuple[fx.GraphModule, tuple[Result, ...]]:
    """Turns each `copy_(placeholder, value)`, which functionalization leaves for a mutated argument, into a result."""
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
    erase_assertions(graph)
    graph.eliminate_dead_code()
    return fx.GraphModule(graph_module, graph), tuple(results)


def dims_of_exported(exported: ExportedProgram, sizes: Sizes) -> tuple[tuple[Dim, ...], tuple[Guard, ...]]:
    """Returns a Dim for each free symbol of the placeholders, with the user's name and its range, and the guards on them."""
    inputs = [spec.arg.name for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    given = dict(zip(inputs, sizes.asked, strict=False))
    aliases: dict[sympy.Symbol, list[str]] = {}
    names: dict[sympy.Symbol, str] = {}
    least: dict[sympy.Symbol, int] = {}
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
            ):  # a derived size, such as 2 * n, is an expression
                aliases.setdefault(symbol, [])
                if size.node.expr.is_symbol:
                    aliases[symbol].append(f"{node.name}.{index}" if isinstance(val, torch.Tensor) else node.name)
                asked = given.get(node.name, {}).get(index)
                if asked is None:
                    continue
                least[symbol] = max(asked.minimum, least.get(symbol, 0))
                if asked.name is not None:
                    names.setdefault(symbol, asked.name)
    guards = guards_of(environment, set(aliases))
    dims = []
    for symbol, places in aliases.items():
        allowed = exported.range_constraints.get(symbol)
        hint = environment.backed_var_to_val.get(symbol) if environment is not None else None
        dims.append(
            Dim(
                name=names.get(symbol) or (places or [str(symbol)])[0],
                symbol=symbol,
                minimum=_minimum(
                    _bound(allowed.lower if allowed is not None else 0) or 0, symbol, least, sizes, guards
                ),
                maximum=_bound(allowed.upper) if allowed is not None else None,
                hint=None if hint is None else int(hint),
                aliases=tuple(places),
            )
        )
    return tuple(dims), guards


def _minimum(
    traced: int, symbol: sympy.Symbol, least: Mapping[sympy.Symbol, int], sizes: Sizes, guards: Sequence[Guard]
) -> int:
    """The smallest size that can be bound. traced: torch's minimum, which is 2 where it only specializes 0 and 1."""
    if symbol not in least:  # exported by the user: its own range applies
        return traced
    if not sizes.any_size:
        return max(traced, 2)
    excluded = [guard for guard in guards if not guard.internal and guard.expression.free_symbols == {symbol}]
    if traced > 2 or any(guard.expression.xreplace({symbol: sympy.Integer(1)}) == sympy.false for guard in excluded):
        return traced
    return least[symbol]


def _bound(number: Any) -> int | None:
    """A bound of a range as an int; None where it is infinite."""
    return int(number) if getattr(number, "is_Integer", isinstance(number, int)) and number < 2**62 else None


def guards_of(environment: ShapeEnv | None, symbols: set[sympy.Symbol]) -> tuple[Guard, ...]:
    if environment is None:
        return ()
    found = []
    for guard in environment.guards:
        if guard.expr.free_symbols and guard.expr.free_symbols <= symbols:
            found.append(Guard(guard.expr, guard_frame(guard), _is_internal(guard)))
    return tuple(found)


def _is_internal(guard: ShapeGuard) -> bool:
    """Whether the guard comes from torch's kernels rather than from the Python of the model or of torch.nn."""
    file = getattr(getattr(guard.sloc, "framework_loc", None), "filename", "")
    return "/torch/" in file and "/torch/nn/" not in file


def guard_frame(guard: ShapeGuard) -> str | None:
    """ "file:line" of the user's code that caused a guard; None where torch recorded none."""
    frame: Any = getattr(guard.sloc, "framework_loc", None)  # the innermost frame outside torch's tracing code
    if hasattr(frame, "filename") and not _is_internal(guard):
        return f"{frame.filename}:{frame.lineno}"
    found = re.search(r"([^\s\"]+\.py)\"?(?::|, line )(\d+)", str(getattr(guard.sloc, "maybe_user_loc", None) or ""))
    return f"{found[1]}:{found[2]}" if found else None

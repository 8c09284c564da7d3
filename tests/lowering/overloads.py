"""Rules one overload at a time: calls of exact overloads as one Program, without a trace, compared with eager torch.

A trace would take some overloads apart before their rules see them, and a module for each call would take minutes: here
each call is one node of a graph made by hand, and all calls of a group are compiled as one module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from differential import Outcome, agree, clone, execute
from torch import fx
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree as pytree

from fxhlo.lowering.emit.emit import emit
from fxhlo.lowering.module import HloModule
from fxhlo.passes.program import Argument, Program, Result


def same(*results: Any) -> Any:
    return results


@dataclass
class Call:
    """One call of an overload such as "aten.add.Tensor". seen: what of its results is compared (all, as they are)."""

    overload: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    seen: Callable[..., Any] = same
    tolerances: dict[str, float] = field(default_factory=dict)
    reference: Callable[..., torch.Tensor] | None = None

    @property
    def op(self) -> torch._ops.OpOverload:
        namespace, name, overload = self.overload.split(".")
        return getattr(getattr(getattr(torch.ops, namespace), name), overload)

    def eager(self) -> list[torch.Tensor]:
        args, kwargs = clone((self.args, self.kwargs))
        with torch.no_grad():
            result = (self.reference or self.op)(*args, **kwargs)
        return [result] if isinstance(result, torch.Tensor) else list(result)

    def works(self) -> bool:
        """Whether eager torch takes these operands as they lie in memory: not every op has every dtype."""
        try:
            with torch.no_grad():
                (self.reference or self.op)(*self.args, **self.kwargs)
        except (RuntimeError, IndexError, NotImplementedError, ValueError):
            return False
        return True

    def __str__(self) -> str:
        def short(leaf: Any) -> Any:
            return f"{leaf.dtype}{list(leaf.shape)}" if isinstance(leaf, torch.Tensor) else leaf

        return f"{self.overload}{pytree.tree_map(short, self.args)} {pytree.tree_map(short, self.kwargs) or ''}"


def program_of(calls: Sequence[Call]) -> tuple[Program, list[torch.Tensor]]:
    """The calls as one Program whose inputs are all their tensors in order, and whose results are all their results."""
    graph, outputs = fx.Graph(), []
    tensors = [leaf for call in calls for leaf in pytree.tree_leaves((call.args, call.kwargs)) if _is_tensor(leaf)]
    placeholders = [graph.placeholder(f"x{index}") for index in range(len(tensors))]
    waiting = iter(placeholders)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        for call in calls:
            leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
            nodes, fakes = list(leaves), list(leaves)
            for index, leaf in enumerate(leaves):
                if _is_tensor(leaf):
                    nodes[index] = next(waiting)
                    fakes[index] = nodes[index].meta["val"] = fake.from_tensor(leaf)
            args, kwargs = pytree.tree_unflatten(nodes, spec)
            node = graph.call_function(call.op, args, kwargs)
            fake_args, fake_kwargs = pytree.tree_unflatten(fakes, spec)
            try:
                node.meta["val"] = call.op(*fake_args, **fake_kwargs)
            except DynamicOutputShapeException:  # fake tensors do not know what these operands give: eager torch does
                with unset_fake_temporarily():
                    results = call.eager()
                node.meta["val"] = [fake.from_tensor(result) for result in results]
            if isinstance(node.meta["val"], torch.Tensor):
                outputs.append(node)
                continue
            for index, val in enumerate(node.meta["val"]):
                part = graph.call_function(getitem, (node, index))
                part.meta["val"] = val
                outputs.append(part)
    graph.output(tuple(outputs))
    return Program(
        fx.GraphModule(torch.nn.Module(), graph),
        tuple(Argument(node.name, "input") for node in placeholders),
        tuple(Result(f"r{index}") for index in range(len(outputs))),
    ), tensors


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def run(calls: Sequence[Call]) -> tuple[HloModule, list[list[torch.Tensor]]]:
    """The results of each call, computed by one compiled module."""
    program, tensors = program_of(calls)
    hlo = emit(program)
    results = execute(hlo, tensors).results
    grouped = []
    for call in calls:
        count = len(call.eager())
        grouped.append(results[:count])
        results = results[count:]
    return hlo, grouped


def compare(call: Call, actual: Sequence[torch.Tensor]) -> None:
    expected = call.eager()
    ours, theirs = (
        [leaf for leaf in pytree.tree_leaves(call.seen(*results)) if isinstance(leaf, torch.Tensor)]
        for results in (actual, expected)
    )
    try:
        agree(Outcome(theirs, {}), Outcome(ours, {}), **call.tolerances)
    except AssertionError as problem:
        raise AssertionError(f"{call}: {problem}") from None


def check_calls(calls: Sequence[Call]) -> None:
    """Asserts that every call gives what eager torch gives."""
    _, results = run(calls)
    problems = []
    for call, actual in zip(calls, results, strict=True):
        try:
            compare(call, actual)
        except AssertionError as problem:
            problems.append(str(problem))
    assert not problems, f"{len(problems)} of {len(calls)} calls differ:\n" + "\n\n".join(problems)

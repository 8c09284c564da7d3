"""Checks that a captured program is still right where a dynamic size is bound to 0 or 1.

torch.export records the general branch: `x.squeeze(1)` keeps a dimension whose size is symbolic, a sum does not broadcast. For a
size of 1 eager torch may take another branch. Comes in: a Program and the numbers of its symbols. Guaranteed: every op of the
exported graph and of the decomposed one, run on fake tensors of the bound sizes, returns the shape that the program states; else
GuardError names its line.
"""

from __future__ import annotations

import torch
from torch import fx

from ...passes.program import Program, where
from ...passes.torch_private import FakeTensorMode, pytree
from ..errors import GuardError, LoweringError
from ..registry import overload_name
from .dims import SMALL, Binding


def check_small_sizes(program: Program, binding: Binding) -> None:
    """Raises GuardError where an op's shape at these sizes is not the one that the capture states. No-op without small sizes."""
    if program.source is None:
        return
    small = {
        dim.name: binding.sizes[dim.name]
        for dim in program.dims
        if binding.sizes[dim.name] in SMALL or dim.hint in SMALL
    }
    if not small:
        return
    for module in (program.source, program.module):
        _Replay(module, binding, small).replay()


class _Replay(fx.Interpreter):
    """Runs a graph on fake tensors of the bound sizes and compares each shape with the one that the graph states."""

    def __init__(self, module: fx.GraphModule, binding: Binding, small: dict[str, int]) -> None:
        super().__init__(module, garbage_collect_values=True)
        self.binding = binding
        self.small = ", ".join(f"{name}={size}" for name, size in small.items())
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def replay(self) -> None:
        with torch.no_grad(), self.mode:
            inputs = [self._input(node) for node in self.module.graph.nodes if node.op == "placeholder"]  # type: ignore[union-attr]
            self.run(*inputs, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> object:
        try:
            result = super().run_node(n)
        except GuardError:
            raise
        except Exception as problem:
            lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
            raise self._error(n, f"{overload_name(n.target)} fails: {' '.join(lines[:1])}") from problem
        if n.op == "call_function":
            self._compare(n, result)
        return result

    def _input(self, node: fx.Node) -> object:
        val = node.meta.get("val")
        if isinstance(val, torch.Tensor):
            shape = self.binding.type_of(val).shape
            try:
                strides = [self.binding.number(stride) for stride in val.stride()]
            except LoweringError:  # the example was a view of a larger tensor: its strides are not bound
                return torch.empty(shape, dtype=val.dtype, device=val.device)
            return torch.empty_strided(shape, strides, dtype=val.dtype, device=val.device)
        return self.binding.number(val) if isinstance(val, torch.SymInt | torch.SymFloat | torch.SymBool) else val

    def _compare(self, node: fx.Node, result: object) -> None:
        stated = pytree.tree_leaves(node.meta.get("val"))
        for before, after in zip(stated, pytree.tree_leaves(result), strict=False):
            if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
                continue
            expected = self.binding.type_of(before).shape
            if expected != tuple(after.shape):
                raise self._error(
                    node,
                    f"{overload_name(node.target)} gives {list(after.shape)}, where the capture has {list(expected)}",
                )

    def _error(self, node: fx.Node, what: str) -> GuardError:
        return GuardError(
            f"{self.small} was not captured: at that size {what}",
            where=where(node),
            next_step="lower it again with an example of that size and without dynamic_shapes for it, or bind another size",
        )

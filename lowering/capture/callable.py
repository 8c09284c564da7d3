"""Captures a callable over a module by make_fx, as serving does with vLLM's models."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import fx

from ...kernels.catalog import register_torch_ops
from ...passes.functional import functional_graph
from ...passes.garbage import uncollected
from ...passes.program import Argument, Dim, Program, Result
from ...passes.torch_private import (
    FakeTensorMode,
    OpOverload,
    ShapeEnv,
    is_mutable,
    new_size,
    reparametrized,
    schema_of,
    zero_and_one_not_specialized,
)
from ...runtime.core.errors import FxhloError
from ..decompositions.table import decompositions
from ..errors import CaptureError
from .program import guards_of, mutations_as_results
from .repeated import Layers, NotRepeated, splice
from .tracing import count_trace, first_lines, our_decompositions, user_frame

FRAMES = 4
"""The number of lines of the user's code, from the call outwards, that a node keeps."""


@dataclass(frozen=True)
class Input:
    """An input of a captured callable: its sizes, a name for a symbolic one, and its dtype."""

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype


def capture_callable(
    function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    module: torch.nn.Module,
    inputs: Sequence[Input],
    ranges: Mapping[str, tuple[int, int]],
    *,
    results: Sequence[str] = ("output",),
    name: str = "main",
    copied: Collection[str] = (),
) -> Program:
    """Captures `function(*inputs)`, which may call `module` in any way, with the module's parameters as arguments.

    copied: packages whose modules may be copied where they repeat, in place of tracing each (repeated.py): where all modules are from these.

    ranges: for each symbolic size its minimum and maximum. Sizes of weights are static. The module's parameters may be on the
    meta device. Raises CaptureError where the model's Python depends on values, SealedError in a sealed process.
    """
    register_torch_ops()
    count_trace()
    environment = ShapeEnv(duck_shape=False, specialize_zero_one=False)
    fake_mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=True, static_shapes=False)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    parameters = set(dict(module.named_parameters()))
    with fake_mode:
        fakes = [_fake_weight(fake_mode, tensor) for tensor in named.values()]
    dims, symbolic = _symbolic_inputs(environment, fake_mode, inputs, ranges)
    try:
        with uncollected():
            graph_module = _trace(function, module, named, fakes, symbolic, copied)
    except FxhloError:
        raise
    except Exception as problem:
        raise CaptureError(
            f"{name} could not be captured: {first_lines(problem)}",
            where=user_frame(problem),
            next_step="this model uses Python that depends on tensor values; see the cause above",
        ) from problem
    arguments = [Argument(weight, "weight" if weight in parameters else "buffer") for weight in named]
    arguments += [Argument(entry.name, "input") for entry in inputs]
    graph_module, outcome = mutations_as_results(graph_module, arguments, [Result(result) for result in results])
    program = Program(
        graph_module, tuple(arguments), outcome, dims, guards_of(environment, {dim.symbol for dim in dims}), named, name
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
    sizes: dict[str, torch.SymInt] = {}
    dims = []
    for number, (name, (low, high)) in enumerate(ranges.items()):
        # A size that equals no other one; never 1, which ops of the passes would take for a dimension that broadcasts.
        hint = max(min(97 + 14 * number, high - number), min(2, high))
        size = sizes[name] = new_size(environment, name, hint)
        symbol = size.node.expr
        environment.constrain_symbol_range(symbol, low, high)
        dims.append(Dim(name, symbol, low, high, hint))
    with fake_mode:
        tensors = [
            torch.empty([sizes[size] if isinstance(size, str) else size for size in entry.shape], dtype=entry.dtype)
            for entry in inputs
        ]
    return tuple(dims), tensors


def _trace(
    function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    module: torch.nn.Module,
    named: Mapping[str, torch.Tensor],
    weights: list[torch.Tensor],
    inputs: list[torch.Tensor],
    copied: Collection[str],
) -> fx.GraphModule:
    """The graph of the function. Some of the repeated layers are traced and the others copied; all are traced where that is not possible."""
    layers = Layers(module, copied)
    try:
        made = _traced(function, module, named, weights, inputs, layers.watched())
        if layers.met:
            placeholders = [node for node in made.graph.nodes if node.op == "placeholder"]
            splice(made.graph, dict(zip(placeholders, named, strict=False)))
        return made
    except Exception as problem:  # a layer that was not traced left nothing where Python looks for it
        if not layers.copied and not isinstance(problem, NotRepeated):
            raise
    return _traced(function, module, named, weights, inputs, nullcontext())


def _traced(
    function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    module: torch.nn.Module,
    named: Mapping[str, torch.Tensor],
    weights: list[torch.Tensor],
    inputs: list[torch.Tensor],
    layers: AbstractContextManager[None],
) -> fx.GraphModule:
    watched = Watched()

    def flat(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parameters = dict(zip(named, values[: len(named)], strict=True))
        watched.traced = {id(tensor): parameters[name] for name, tensor in named.items()}
        with (
            reparametrized(module, parameters, tie_weights=True),
            _module_paths(module),
            layers,
        ):
            results = function(*values[len(named) :])
        return tuple(results) if isinstance(results, tuple | list) else (results,)

    with torch.no_grad(), zero_and_one_not_specialized(), our_decompositions():
        return functional_graph(flat, [*weights, *inputs], table=decompositions(), watched=watched)


class Watched(torch.overrides.TorchFunctionMode):
    """Intercepts every call of torch in the model: records the line that makes it, and calls functional overloads.

    Custom ops that return an operand they changed cannot be functionalized: where such an op has a functional `default`
    overload with the same parameters (vLLM's `maybe_inplace` ones do), that one is traced instead.

    traced: the value in the graph of each parameter and buffer, by its identity. A module's attributes are swapped for these
    values, but Python may hold a parameter elsewhere: a router that was given its bias, or a backend its sinks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.traced: Mapping[int, torch.Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Collection[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if isinstance(func, OpOverload) and is_mutable(func) and func.namespace not in ("aten", "prims"):
            default = getattr(func.overloadpacket, "default", None)
            if default is not None and not is_mutable(default) and _parameters(default) == _parameters(func):
                func = default
        fx.traceback.current_meta["stack_trace"] = _stack(sys._getframe(1))
        args = tuple([self._in_graph(arg) for arg in args])
        kwargs = {name: self._in_graph(arg) for name, arg in kwargs.items()} if kwargs else {}
        if func is torch.nn.functional.linear:
            return _linear(*args, **kwargs)
        return func(*args, **kwargs)

    def _in_graph(self, value: Any) -> Any:
        """An operand, or a list of operands, with the graph's value in place of each parameter."""
        if isinstance(value, torch.Tensor):
            return self.traced.get(id(value), value)
        if type(value) in (list, tuple):
            return type(value)([self._in_graph(entry) for entry in value])
        return value


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear`, which with a bias specializes the sizes of [1, tokens, features]; this does not."""
    if bias is None or input.ndim < 3:
        return torch.nn.functional.linear(input, weight, bias)
    rows = torch.nn.functional.linear(input.flatten(0, -2), weight, bias)
    return rows.reshape(*input.shape[:-1], weight.shape[0])


def _stack(frame: FrameType | None) -> str:
    """The innermost frames outside torch, as a traceback prints them. torch's own recording takes a third of a trace's time."""
    lines: list[str] = []
    while frame is not None and len(lines) < FRAMES and frame.f_code.co_filename != __file__:
        file = frame.f_code.co_filename
        if "/torch/" not in file and not file.startswith("<"):
            lines.append(f'File "{file}", line {frame.f_lineno}, in {frame.f_code.co_name}')
        frame = frame.f_back
    return "\n".join(reversed(lines))


def _parameters(overload: OpOverload) -> list[str]:
    return [argument.name for argument in schema_of(overload).arguments]


@contextmanager
def _module_paths(module: torch.nn.Module) -> Iterator[None]:
    """Records on every node the submodule that made it, as torch.export does: the key of a module's second call ends in @1."""
    paths = {id(child): path for path, child in module.named_modules()}
    stack: list[tuple[str, tuple[str, type[torch.nn.Module]]]] = []
    calls: Counter[str] = Counter()

    def note() -> None:
        fx.traceback.current_meta["nn_module_stack"] = dict(stack)

    def enter(child: torch.nn.Module, args: object) -> None:
        path = paths.get(id(child), "")
        stack.append((f"{path}@{calls[path]}" if calls[path] else path, (path, type(child))))
        calls[path] += 1
        note()

    def leave(child: torch.nn.Module, args: object, output: object) -> None:
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

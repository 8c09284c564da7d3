"""How a model lies on a mesh: tensor parallelism by one worker that owns all devices, by rules for vLLM's own kinds of layers.

Comes in: a model of one device, with or without weights. Goes out: the mesh, and a `Plan`: for each weight and
state the axes that split it. Guaranteed: what no rule divides is an UnsupportedError, before weights are read.

The model is built and captured for one device (parallel.py), and its programs are partitioned (passes/hlo/partition.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from math import prod
from typing import Any

import torch
from torch import nn

from ...kernels.partition import REQUESTS
from ...passes.cache_groups import CacheGroup, owner
from ...passes.hlo.plan import NEXT_STEP, Plan
from ..core.errors import SignatureError, UnsupportedError
from ..core.mesh import Mesh
from ..core.sharding import Part, Sharding, Split
from . import compat
from .heads import CONTEXT, mesh_of
from .layers.catalog import kind_of
from .layers.experts import activation_of
from .layers.kind import Devices
from .parallel import latents_by_blocks, without_cache
from .states.latent_kv import LatentKV
from .states.paged_kv import PagedKV
from .states.spec import StateSpec

Axes = tuple[str, ...]


def mesh_for(devices: int, layers: Mapping[str, Any], context: int = 1, requests: int = 1) -> Mesh:
    """`mesh_of` for these layers. Latents are of all heads, and recurrent states have heads of their own."""
    others = (compat.MLAAttention, compat.MambaBase)
    cached = [layer for layer in layers.values() if not isinstance(layer, others)]
    return mesh_of(devices, _counts("num_heads", layers.values()), _counts("num_kv_heads", cached), context, requests)


def _counts(name: str, layers: Iterable[Any]) -> set[int]:
    return {count for layer in layers if isinstance(count := getattr(layer, name, None), int)}


def plan_of(
    model: nn.Module,
    layers: Mapping[str, Any],
    states: Iterable[StateSpec],
    devices: int,
    *,
    experts_apart: bool = False,
    context: int = 1,
    requests: int = 1,
    rows: int | None = None,
) -> Plan:
    """How the weights and states of a model lie on so many devices. layers: those with a state, by name. experts_apart: whether a
    device has whole experts, and not a part of each. context: devices that share the cache of the same heads. requests: groups of devices
    that have the caches of other requests. rows: `Plan.rows`."""
    for name, layer in layers.items():
        if kind_of(name, layer).splits is None:
            raise UnsupportedError(
                f"fxhlo does not split {kind_of(name, layer).name} ({name}) over several devices yet",
                next_step=NEXT_STEP,
            )
    if context > 1 and any(isinstance(layer, compat.MLAAttention) for layer in layers.values()):
        raise latents_by_blocks()
    states = tuple(states)
    if requests > 1 and not any(isinstance(state, PagedKV | LatentKV) for state in states):
        raise without_cache()
    mesh = mesh_for(devices, layers, context, requests)
    rules, own = _Rules(mesh, experts_apart), _own(layers, mesh)
    weights: dict[str, Split] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, split in (*own.get(id(module), {}).items(), *rules.of(module)):
            parameter, full = _parameter(module, name), f"{path}.{name}"
            if (
                parameter is not None and full not in weights
            ):  # a layer's own rules come before those of the linear layers in it
                _check(full, parameter.shape, split, mesh)
                weights[full] = split
    return Plan(mesh, weights, dict(_states(states, layers, own, rules)), rows)


def _own(layers: Mapping[str, Any], mesh: Mesh) -> dict[int, Mapping[str, Split]]:
    """What the kinds of layers say of their own parameters and states, by the layer's id."""
    devices = Devices(mesh)
    splits = {id(layer): kind_of(name, layer).splits for name, layer in layers.items()}
    return {id(layer): rule(layer, devices) for layer in layers.values() if (rule := splits[id(layer)]) is not None}


def _states(
    states: Iterable[StateSpec], layers: Mapping[str, Any], own: Mapping[int, Mapping[str, Split]], rules: _Rules
) -> Iterator[tuple[str, Split]]:
    """(a state's name, how it lies). Raises UnsupportedError where the devices do not divide it."""
    for state in states:
        requests = (REQUESTS,) if REQUESTS in rules.all else ()
        if isinstance(state, PagedKV):
            heads = rules.heads(state.kv_heads)
            blocks = (CONTEXT,) if CONTEXT in rules.all and CONTEXT not in heads else requests
            yield state.name, Split(Sharding((blocks, (), heads, ())))
            continue
        if isinstance(state, LatentKV):
            yield state.name, Split(Sharding((requests, (), ())))
            continue
        split = own[id(layers[state.layer])].get(state.name.removesuffix(f".{state.layer}"), Split())
        _check(state.name, [size if isinstance(size, int) else 1 for size in state.shape], split, rules.mesh)
        yield state.name, split


def _parameter(module: nn.Module, path: str) -> torch.Tensor | None:
    """A module's parameter, which may be a submodule's; None where there is none of that name, or the layer has no bias."""
    try:
        found = reduce(getattr, path.split("."), module)
    except AttributeError:
        return None
    return found if isinstance(found, torch.Tensor) else None


def check_groups(states: Iterable[StateSpec], groups: Sequence[CacheGroup]) -> None:
    """Checks that layers of several groups share memory in blocks of one shape: a view of other heads would cross devices.

    Raises UnsupportedError.
    """
    caches = {state.layer: state for state in states if isinstance(state, PagedKV)}
    for layer, cache in caches.items() if len(groups) > 1 else ():
        index, owned = owner(groups, layer)
        if owned == layer or owned not in caches:
            continue
        other = caches[owned]
        shapes = [(groups[index].block_size, cache.kv_heads, cache.head_size)]
        shapes.append((groups[owner(groups, owned)[0]].block_size, other.kv_heads, other.head_size))
        if len(set(shapes)) > 1:
            raise UnsupportedError(
                f"fxhlo does not split caches that {layer} and {owned} share in blocks of different shapes over several devices yet",
                next_step="start with --disable-hybrid-kv-cache-manager",
            )


def _check(name: str, shape: Sequence[int], split: Split, mesh: Mesh) -> None:
    """Raises UnsupportedError where a weight or a state does not divide."""
    try:
        split.shape(tuple(shape), mesh)
    except SignatureError as problem:
        raise UnsupportedError(
            f"{mesh.devices} devices do not divide {name}, {list(shape)}: {problem.message}",
            next_step="take a --tensor-parallel-size that divides the model's sizes in config.json",
        ) from problem


class _Rules:
    """The rules, by vLLM's classes of layers. Parameters of other modules, such as norms, are whole on every device."""

    def __init__(self, mesh: Mesh, experts_apart: bool) -> None:
        self.mesh = mesh
        self.all: Axes = tuple(name for name, _ in mesh.axes)
        self.own: Axes = tuple(name for name in self.all if name != REQUESTS)
        """Of the devices that have the same requests."""
        linear = compat.linear_layers()
        self._table: tuple[tuple[type, Callable[[Any], Iterator[tuple[str, Split]]]], ...] = (
            (linear.QKVParallelLinear, self._qkv),
            (linear.MergedColumnParallelLinear, self._merged),
            (linear.ColumnParallelLinear, self._column),
            (linear.RowParallelLinear, self._row),
            (compat.VocabParallelEmbedding, self._column),  # and the head, which is a subclass
            (compat.MLAAttention, self._latent),
            *(
                ((experts, self._whole_experts if experts_apart else self._experts),)
                if (experts := compat.routed_experts()) is not None
                else ()
            ),
        )

    def of(self, module: nn.Module) -> Iterator[tuple[str, Split]]:
        """(parameter's name in the module, how it is split)."""
        if getattr(module, "disable_tp", False):  # vLLM's word for a layer that every device has whole
            return
        for kind, rule in self._table:
            if isinstance(module, kind):
                yield from rule(module)
                return

    def heads(self, count: int) -> Axes:
        """The axes that split so many heads of keys."""
        devices = prod(self.mesh.size(axis) for axis in self.own)
        return self.own if count % devices == 0 else ("kv",)

    def _column(self, layer: Any) -> Iterator[tuple[str, Split]]:
        yield from self._fused(())

    def _merged(self, layer: Any) -> Iterator[tuple[str, Split]]:
        yield from self._fused(tuple(Part(size, self.all) for size in layer.output_sizes))

    def _qkv(self, layer: Any) -> Iterator[tuple[str, Split]]:
        query, *others = layer.output_sizes
        keys = self.heads(layer.total_num_kv_heads)
        yield from self._fused((Part(query, self.all), *(Part(size, keys) for size in others)))

    def _fused(self, parts: tuple[Part, ...]) -> Iterator[tuple[str, Split]]:
        """weight [outputs, inputs] and bias [outputs], split by their outputs."""
        yield "weight", Split(Sharding((self.all, ())), 0, parts)
        yield "bias", Split(Sharding((self.all,)), 0, parts)

    def _row(self, layer: Any) -> Iterator[tuple[str, Split]]:
        """weight [outputs, inputs], split by its inputs; the bias is added once."""
        yield "weight", Split(Sharding(((), self.all)))

    def _latent(self, layer: Any) -> Iterator[tuple[str, Split]]:
        """The projections of a head's queries and values to and from latents, [heads, ...]; the latents are of all heads."""
        for name in ("W_UK_T", "W_UV"):
            yield name, Split(Sharding((self.own, (), ())))

    def _whole_experts(self, layer: Any) -> Iterator[tuple[str, Split]]:
        """w13 [E, 2 F, D], w2 [E, D, F] and their biases, split along E."""
        for name in ("w13_weight", "w2_weight"):
            yield name, Split(Sharding((self.all, (), ())))
        for name in ("w13_bias", "w2_bias"):
            yield name, Split(Sharding((self.all, ())))

    def _experts(self, layer: Any) -> Iterator[tuple[str, Split]]:
        """w13 [E, 2 F, D] and w2 [E, D, F], split along F. Gate and up lie one after the other, unless rows of both alternate."""
        gated = bool(layer.moe_config.is_act_and_mul) and activation_of(layer)[0] != "swigluoai"
        units = layer.w13_weight.shape[1] // 2
        parts = (Part(units, self.all),) * 2 if gated else ()
        yield "w13_weight", Split(Sharding(((), self.all, ())), 1, parts)
        yield "w13_bias", Split(Sharding(((), self.all)), 1, parts)
        yield "w2_weight", Split(Sharding(((), (), self.all)))

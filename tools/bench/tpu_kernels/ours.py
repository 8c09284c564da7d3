"""Cycles of Pallas kernels, each compiled alone, for a layer's call.

Of kernels whose loops follow the data (attention): libtpu's profile of one tile of rows with two and with four blocks of keys, so that a
tile's fixed cost and that of a block are known, times the step's tiles and blocks. Of kernels on a grid: the bundles of the schedule
times the turns of the grid. Nothing takes less than the cycles in which the memory delivers what it reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ....kernels.spec import Implementation, TensorSpec
from ....runtime.core.targets import Target
from . import forms, wheel
from .compiler import bundles, clock, compile_implementation, profiled, schedules
from .layers import Layer, Step
from .straight import straight_prompts, straighten

FLOAT32, INT32 = np.dtype(np.float32), np.dtype(np.int32)
Specs = dict[str, TensorSpec]


def cycles(layer: Layer, form: str, target: Target, folder: Path) -> float:
    """Of all Pallas kernels in the form's program for the layer. folder: where libtpu writes."""
    if form == "wheel":
        keys, rows = wheel.sizes(layer)
        return _by_tiles(layer, target, keys, rows, partial(_wheel, layer, target, folder))
    of = {"moe": _experts, "ragged_paged_attention": _attention, forms.LATENT: _latents}.get(layer.kernel, _states)
    return of(layer, form, target, folder)


def _alone(
    call: Callable[..., Any], specs: Specs, target: Target, folder: Path, *, row_major: tuple[str, ...] = ()
) -> set[Path]:
    """The schedules of a call that was compiled alone."""
    before = schedules(folder)
    compile_implementation(Implementation("tpu", "pallas", call, row_major=row_major), specs, {}, target)
    return schedules(folder) - before


def _memory(size: float, target: Target) -> float:
    """Cycles in which the memory delivers so many bytes."""
    return size / (target.bandwidth or 1) * clock(target)


def _by_tiles(layer: Layer, target: Target, keys: int, rows: int, tile: Callable[[int], float]) -> float:
    """tile: cycles of one tile of `rows` rows with so many blocks of `keys` keys."""
    assert layer.step is not None
    cache, step = layer.operands["kv_cache"], layer.step
    two, four = tile(2), tile(4)
    block = max((four - two) / 2, _memory(keys * prod(cache.shape[2:]) * cache.dtype.itemsize, target))
    ends = [step.context - step.each + min(first + rows, step.each) for first in range(0, step.each, rows)]
    blocks = sum(-(-end // keys) for end in ends)
    return step.requests / target.cores * (len(ends) * max(two - (four - two), 0.0) + block * blocks)


def _wheel(layer: Layer, target: Target, folder: Path, blocks: int) -> float:
    specs = dict(layer.operands)
    if len(layer.operands["block_tables"].shape) and layer.step and layer.step.each > 1:  # one tile of one request
        specs |= {
            name: TensorSpec((wheel.ROWS, *specs[name].shape[1:]), specs[name].dtype)
            for name in ("query", "key", "value")
        }
    call = partial(wheel.call, straight=blocks, scale=layer.attributes["scale"])
    before = schedules(folder)
    compile_implementation(Implementation("tpu", "wheel", _named(call), row_major=("kv_cache",)), specs, {}, target)
    return profiled(folder, before)


def _named(call: Callable[..., Any]) -> Callable[..., Any]:
    """Without a parameter `target`."""

    def named(**operands: Any) -> Any:
        return call(**operands)

    return named


def _attention(layer: Layer, form: str, target: Target, folder: Path) -> float:
    from ....kernels.paged_attention import tpu, tpu_attend, tpu_softmax
    from ....kernels.paged_attention.tpu_batch import Meaning
    from ....kernels.paged_attention.tuning import blocks_for

    assert layer.step is not None
    query, cache, tables = (layer.operands[name] for name in ("query", "kv_cache", "block_tables"))
    sizes = blocks_for(query, cache, tables.shape[1], target)
    assert sizes is not None
    rows = 1 if layer.step.each == 1 else sizes.tile
    sinks = layer.operands.get("sinks")
    numbers = (("sinks", query.shape[1]),) if sinks else ()
    specs = {
        name: layer.operands[name] for name in ("query", "kv_cache", "block_tables", "seq_lens", "query_start_loc")
    }
    specs["numbers"] = TensorSpec((query.shape[1] + 1,) if sinks else (1,), FLOAT32)

    def attend(query: Any, kv_cache: Any, block_tables: Any, seq_lens: Any, query_start_loc: Any, numbers: Any) -> Any:
        scalars = (block_tables.reshape(-1), seq_lens, query_start_loc, numbers)
        return tpu_attend.attend(scalars, query, kv_cache, Meaning(1.0, 0, 0, 0.0, numbers_of), sizes, target.cores)

    numbers_of = numbers

    def tile(blocks: int) -> float:
        def chunk(softmax: Any, place: Any, at: int, number: Any, span: Any) -> None:
            softmax.chunk(place.pages_at, at, number * sizes.keys + at - span.position, span.position, rows)

        straighten((tpu_softmax, tpu_attend), blocks, sizes.keys, cache.shape[1], rows, chunk)
        before = schedules(folder)
        compile_implementation(Implementation("tpu", "pallas", attend, row_major=("kv_cache",)), specs, {}, target)
        return profiled(folder, before)

    def write(new: Any, kv_cache: Any, slot_mapping: Any) -> Any:
        return tpu.write(new, kv_cache, slot_mapping)

    new = TensorSpec((query.shape[0], *cache.shape[2:]), cache.dtype)
    given = {"new": new, "kv_cache": cache, "slot_mapping": layer.operands["slot_mapping"]}
    writes = bundles(_alone(write, given, target, folder, row_major=("kv_cache",)))
    return writes + _by_tiles(layer, target, sizes.keys, rows, tile)


def _latents(layer: Layer, form: str, target: Target, folder: Path) -> float:
    from ....kernels.paged_attention.tpu_batch import Meaning
    from ....kernels.paged_latent_attention import tpu, tpu_softmax
    from ....kernels.paged_latent_attention.tuning import blocks_for, padded_heads

    if form == "decompressed":
        return _prompts(layer, target, folder)
    assert layer.step is not None
    query, cache, tables = (layer.operands[name] for name in ("query", "kv_cache", "block_tables"))
    latent = layer.operands["w_uv"].shape[1]
    sizes = blocks_for(query, cache, latent, tables.shape[1], target)
    assert sizes is not None
    rows = 1 if layer.step.each == 1 else sizes.tile
    specs = {"query": TensorSpec((query.shape[0], padded_heads(query.shape[1]), cache.shape[2]), query.dtype)}
    specs |= {name: layer.operands[name] for name in ("kv_cache", "block_tables", "seq_lens", "query_start_loc")}

    def attend(query: Any, kv_cache: Any, block_tables: Any, seq_lens: Any, query_start_loc: Any) -> Any:
        scalars = (block_tables.reshape(-1), seq_lens, query_start_loc)
        return tpu.attend(scalars, query, kv_cache, latent, Meaning(1.0, 0, 0, 0.0, ()), sizes, target.cores, 1 << 30)

    def tile(blocks: int) -> float:
        def chunk(softmax: Any, place: Any, at: int, number: Any, span: Any) -> None:
            softmax.chunk(place, at, number * sizes.keys + at - span.position, rows)

        straighten((tpu_softmax, tpu), blocks, sizes.keys, cache.shape[1], rows, chunk)
        before = schedules(folder)
        compile_implementation(Implementation("tpu", "pallas", attend, row_major=("kv_cache",)), specs, {}, target)
        return profiled(folder, before)

    return _by_tiles(layer, target, sizes.keys, rows, tile)


def _prompts(layer: Layer, target: Target, folder: Path) -> float:
    """Of the decompressed form: what a pair, a block of keys and a part of its rows take, masked or not, from four programs."""
    from ....kernels.paged_attention.tpu_batch import Meaning
    from ....kernels.paged_attention.tpu_pairs import Pairs
    from ....kernels.paged_latent_attention import tpu_prompt
    from ....kernels.paged_latent_attention.tuning import prompt_blocks_for

    assert layer.step is not None
    names = ("query", "kv_cache", "w_uk", "w_uv", "block_tables", "seq_lens", "query_start_loc")
    specs = {name: layer.operands[name] for name in names}
    sizes = prompt_blocks_for(*(specs[name] for name in names[:4]), target)
    assert sizes is not None
    tokens, heads, size = specs["query"].shape
    specs["query"] = TensorSpec((heads, tokens, size), specs["query"].dtype)

    def attend(
        query: Any, kv_cache: Any, w_uk: Any, w_uv: Any, block_tables: Any, seq_lens: Any, query_start_loc: Any
    ) -> Any:
        pairs = Pairs.of(query_start_loc[:-1], query_start_loc[1:], seq_lens > 0, tokens, sizes.rows, 1)
        named = (query, w_uk, w_uv, kv_cache, Meaning(1.0, 0, 0, 0.0, ()), sizes)
        return tpu_prompt.attend(block_tables, pairs, pairs.begin, *named)

    def once(blocks: int, parts: int, *, masked: bool = False) -> float:
        with straight_prompts(blocks, parts, masked=masked):
            before = schedules(folder)
            compile_implementation(Implementation("tpu", "pallas", attend, row_major=("kv_cache",)), specs, {}, target)
            return profiled(folder, before)

    few, more, hidden, longer = once(2, 2), once(2, 4), once(2, 4, masked=True), once(4, 2)
    whole = (more - few) / 4  # a part of every head of the block
    masked = whole + (hidden - more) / 8
    block = (longer - few) / 2 - 2 * whole
    fixed = max(few - 2 * block - 4 * whole, 0.0)
    memory = _memory(sizes.keys * specs["kv_cache"].shape[2] * specs["kv_cache"].dtype.itemsize, target)
    total = 0.0
    for pair in pairs_of(layer.step, sizes.rows, sizes.part, sizes.keys):
        total += fixed + sum(max(block + seen * whole + partly * masked, memory) for seen, partly in pair)
    return total * heads / sizes.heads / target.cores


def pairs_of(step: Step, rows: int, part: int, keys: int) -> list[list[tuple[int, int]]]:
    """For each pair of a tile of `rows` rows and a request, for each block of keys: parts of the tile that see all of it, and those that see
    some of it."""
    found = []
    for start in range(0, step.rows, step.each):
        end = start + step.each
        for tile in range(start // rows, (end - 1) // rows + 1):
            begin, last = max(start, tile * rows), min(end, (tile + 1) * rows)
            position = step.context - end + begin
            blocks = []
            for first_key in range(0, position + last - begin, keys):
                sees = begin + max(first_key - position, 0)
                parts = range(sees // part, -(-last // part))
                inside = [
                    begin <= one * part
                    and (one + 1) * part <= last
                    and first_key + keys - 1 <= position + one * part - begin
                    for one in parts
                ]
                blocks.append((sum(inside), len(inside) - sum(inside)))
            found.append(blocks)
    return found


def _experts(layer: Layer, form: str, target: Target, folder: Path) -> float:
    """Of both products: a visit's bundles times the visits of rows that choose evenly, or the memory's time for chosen weights."""
    choices, chosen = forms.chosen_experts(layer)
    return sum(_product(layer.operands[name], choices, chosen, target, folder) for name in ("w13", "w2"))


def _product(weights: TensorSpec, choices: int, chosen: int, target: Target, folder: Path) -> float:
    from ....kernels.grouped_matmul import tpu
    from ....kernels.grouped_matmul.tuning import height_of, tiles_for

    groups, outputs, inputs = weights.shape
    tiles = tiles_for(choices, groups, inputs, outputs, target)
    assert not isinstance(tiles, str), tiles
    specs = {
        "values": TensorSpec((choices, inputs), weights.dtype),
        "weights": weights,
        "sizes": TensorSpec((groups,), INT32),
    }

    def product(values: Any, weights: Any, sizes: Any) -> Any:
        return tpu.lower(values, weights, sizes, target=target)

    visit = bundles(_alone(product, specs, target, folder))
    columns = -(-outputs // tiles.columns)
    visits = -(-choices // height_of(choices, target)) + chosen - 1
    moved = chosen * outputs * inputs * 2 + choices * (columns * inputs * 2 + outputs * 4)
    return max(visit * visits * columns, _memory(moved, target))


def _states(layer: Layer, form: str, target: Target, folder: Path) -> float:
    """Of the kernel that steps the state of each request, and of the one that goes over tiles of rows."""
    assert layer.step is not None
    if layer.kernel == "ragged_selective_scan":
        return _scan(layer, target, folder) if layer.step.each > 1 else 0.0
    return _single_rows(layer, target, folder) + (_tiles(layer, target, folder) if layer.step.each > 1 else 0.0)


def _scan(layer: Layer, target: Target, folder: Path) -> float:
    """Of the kernel that goes over a request's rows one by one: a turn for a block of channels and a pair of a tile and a request."""
    from ....kernels.ragged_selective_scan.tpu import CHANNELS, WIDTH, along_tiles
    from ....kernels.ragged_selective_scan.xla_requests import Step as Requests

    step, (channels, size) = layer.step, layer.operands["a"].shape
    assert step is not None
    states = TensorSpec((step.requests, channels, size), FLOAT32)
    shapes = {"rate": (channels, size), "rows0": (step.rows, channels), "rows1": (step.rows, channels)}
    shapes |= {"rows2": (step.rows, size), "rows3": (step.rows, size)}
    batch = {"state": states} | {name: layer.operands[name] for name in ("state_slots", "seq_lens", "query_start_loc")}

    def call(state: Any, state_slots: Any, seq_lens: Any, query_start_loc: Any, rate: Any, **rows: Any) -> Any:
        requests = Requests.of(step.rows, state, state_slots, seq_lens, query_start_loc)
        return along_tiles(rate, requests, requests.ends > requests.starts, state, tuple(rows.values()))

    made = _alone(call, batch | {name: TensorSpec(shape, FLOAT32) for name, shape in shapes.items()}, target, folder)
    block = next(one for one in CHANNELS if channels % one == 0)
    return bundles(made, blocks=_pairs(step, WIDTH) * (channels // block))


def _pairs(step: Step, width: int) -> int:
    """Pairs of a tile of `width` rows and a request."""
    return sum(-(-(start + step.each) // width) - start // width for start in range(0, step.rows, step.each))


def _tiles(layer: Layer, target: Target, folder: Path) -> float:
    """Of the kernel that goes over tiles of rows: a turn for a block of heads and a pair of a tile and a request."""
    from ....kernels.ragged_gated_delta_rule import tpu as delta_rule
    from ....kernels.ragged_selective_scan.xla_requests import Step as Requests
    from ....kernels.ragged_ssd import tpu as ssd
    from ....kernels.ragged_ssd.tpu_step import block_of

    step, state = layer.step, layer.operands["state"]
    assert step is not None
    _, heads, size, keys = state.shape
    corrects = "beta" in layer.operands
    groups = layer.operands["b" if "b" in layer.operands else "k"].shape[1]
    shapes = [
        (groups, keys),
        (groups, keys),
        (heads, size),
        *([layer.operands["g"].shape[1:]] if corrects else []),
        (heads,),
    ]
    tiles = (delta_rule if corrects else ssd).tiles_of(heads, groups)
    if tiles is None:
        return 0.0
    rows = {f"rows{at}": TensorSpec((step.rows, *shape), FLOAT32) for at, shape in enumerate(shapes)}
    batch = {name: layer.operands[name] for name in ("state", "state_slots", "seq_lens", "query_start_loc")}

    def call(state: Any, state_slots: Any, seq_lens: Any, query_start_loc: Any, **rows: Any) -> Any:
        requests = Requests.of(step.rows, state, state_slots, seq_lens, query_start_loc)
        return tiles(requests, requests.ends - requests.starts > 1, state, tuple(rows.values()))

    width = forms.tile_of(layer, "pallas")
    made = _alone(call, {**batch, **rows}, target, folder, row_major=("state",))
    return bundles(made, blocks=_pairs(step, width) * (heads // block_of(heads)))


def _single_rows(layer: Layer, target: Target, folder: Path) -> float:
    from ....kernels.ragged_ssd.tpu_step import block_of, step

    state, requests = layer.operands["state"], layer.operands["state_slots"].shape[0]
    _, heads, size, keys = state.shape
    row, value = TensorSpec((requests, heads, keys), FLOAT32), TensorSpec((requests, heads, size), FLOAT32)
    slots = TensorSpec((requests,), INT32)
    specs = {"state": state, "slots": slots, "kinds": slots, "q": row, "k": row, "v": value, "decay": row}
    if "beta" in layer.operands:
        specs["read"] = row

    def call(state: Any, slots: Any, kinds: Any, q: Any, k: Any, v: Any, decay: Any, read: Any = None) -> Any:
        return step(state, slots, kinds, q, k, v, decay, read)

    made = bundles(
        _alone(call, specs, target, folder, row_major=("state",)), blocks=requests * (heads // block_of(heads))
    )
    decoding = layer.step is not None and layer.step.each == 1
    moved = 2 * requests * prod(state.shape[1:]) * state.dtype.itemsize if decoding else 0
    return max(made, _memory(moved, target))

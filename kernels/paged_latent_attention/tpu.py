"""`fxhlo.ragged_paged_latent_attention` on TPU: Pallas kernels that read the cache, one in the absorbed form and one in the decompressed form.

Absorbed: the loop over requests, tiles of rows and blocks of keys, and the copies, are those of `fxhlo.ragged_paged_attention`; all heads of
a row multiply the same keys. A request with enough rows (tuning.py) takes the decompressed form, which multiplies less. The
latents are written, and the projections of the absorbed form applied, by XLA.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ...runtime.core.targets import LANES, Target
from ..paged_attention.tpu_attend import ANYWHERE, Loop
from ..paged_attention.tpu_batch import Batch, Meaning, Refs, Scalar
from ..paged_attention.tpu_copies import Copies
from ..paged_attention.tpu_pairs import Pairs
from ..paged_attention.tuning import QUERIES, SMEM_SLACK, Blocks
from ..paged_attention.xla import rows_of, write_rows
from ..spec import Operands, TensorSpec
from . import tpu_prompt
from .tpu_softmax import LatentSoftmax
from .tuning import BLOCK_SIZES, PromptBlocks, blocks_for, padded_heads, prompt_blocks_for


def supports(operands: Operands, attributes: Mapping[str, Any], target: Target) -> str | None:
    named = operands.named
    query, kv_cache, tables = (named[name] for name in ("query", "kv_cache", "block_tables"))
    latent, block_size = named["w_uv"].shape[1], kv_cache.shape[1]
    if "selected" in named:
        return "it has selected positions"
    floating = {named[name].dtype.name for name in ("query", "latent", "w_uk", "w_uv", "kv_cache")}
    if len(floating) > 1 or not floating <= set(QUERIES):
        return f"query, latent, projections and cache are {', '.join(sorted(floating))}, not all {' or all '.join(QUERIES)}"
    if latent % LANES:
        return f"a latent of {latent} is no multiple of {LANES}"
    if block_size not in BLOCK_SIZES:
        return f"pages of {block_size} tokens are not one of {', '.join(map(str, BLOCK_SIZES))}"
    scalars = 4 * (prod(tables.shape) + 2 * tables.shape[0])
    if scalars > target.smem - SMEM_SLACK:
        return f"block tables of {scalars:,} bytes exceed scalar memory: longer pages make them shorter"
    if blocks_for(query, kv_cache, latent, tables.shape[1], target) is None:
        return (
            f"{query.shape[1]} heads on a latent of {kv_cache.shape[2]} do not fit the vector memory of {target.name}"
        )
    return None


def lower(
    query: Array, latent: Array, w_uk: Array, w_uv: Array, kv_cache: Array, slot_mapping: Array, block_tables: Array, seq_lens: Array,
    query_start_loc: Array, *, scale: float, sliding_window: int = 0, target: Target, form: str = "",
) -> tuple[Array, Array]:  # fmt: skip
    """Operands and results as in reference.py; the cache is updated in place. form: "absorbed" or "decompressed" for all requests, else
    the cheaper one for each."""
    kv_cache = write_rows(latent, kv_cache, slot_mapping, as_bits=False)
    given = _Call(query, w_uk, w_uv, kv_cache, block_tables, seq_lens, query_start_loc, scale, sliding_window, target)
    blocks = prompt_blocks_for(*(TensorSpec(one.shape, one.dtype) for one in (query, kv_cache, w_uk, w_uv)), target)
    if blocks is None or form == "absorbed" or (not form and blocks.least > query.shape[0]):
        return given.absorbed(query.shape[0] + 1), kv_cache
    lengths = query_start_loc[1:] - query_start_loc[:-1]
    if form == "decompressed":
        return given.decompressed(blocks, lengths > 0), kv_cache
    long, none = lengths >= blocks.least, jnp.zeros((*query.shape[:2], w_uv.shape[2]), query.dtype)
    prompts = jax.lax.cond(long.any(), lambda: given.decompressed(blocks, long), lambda: none)
    others = jax.lax.cond(((lengths > 0) & ~long).any(), lambda: given.absorbed(blocks.least), lambda: none)
    request, _ = rows_of(query.shape[0], seq_lens, query_start_loc)
    alive = jnp.arange(query.shape[0]) < query_start_loc[-1]
    return jnp.where((long[request] & alive)[:, None, None], prompts, others), kv_cache


class _Call(NamedTuple):
    """The operands of a call, the cache with this step's latents, and its attributes."""

    query: Array
    w_uk: Array
    w_uv: Array
    kv_cache: Array
    block_tables: Array
    seq_lens: Array
    query_start_loc: Array
    scale: float
    sliding_window: int
    target: Target

    @property
    def meaning(self) -> Meaning:
        return Meaning(self.scale, self.sliding_window, 0, 0.0, ())

    def absorbed(self, below: int) -> Array:
        """Rows [T, N, V] of requests with fewer than `below` rows; of the others they may be anything, of no request they are zero."""
        _, heads, _ = self.query.shape
        _, nope, size = self.w_uk.shape
        inside = projected("tnp,npl->tnl", self.query[..., :nope], self.w_uk)
        query = jnp.concatenate([inside, self.query[..., nope:]], axis=2)
        query = jnp.pad(query, ((0, 0), (0, padded_heads(heads) - heads), (0, 0)))
        specs = [TensorSpec(array.shape, array.dtype) for array in (self.query, self.kv_cache)]
        blocks = blocks_for(*specs, size, self.block_tables.shape[1], self.target)
        if blocks is None:
            raise ValueError("call what supports() admits")
        scalars = (self.block_tables.reshape(-1), self.seq_lens, self.query_start_loc)
        attended = attend(scalars, query, self.kv_cache, size, self.meaning, blocks, self.target.cores, below)
        return projected("tnl,nlv->tnv", attended[:, :heads], self.w_uv)

    def decompressed(self, blocks: PromptBlocks, chosen: Array) -> Array:
        """Rows [T, N, V] of the `chosen` requests [R], the others zero."""
        tokens = self.query.shape[0]
        starts, ends = self.query_start_loc[:-1], self.query_start_loc[1:]
        pairs = Pairs.of(starts, ends, chosen, tokens, blocks.rows, 1)
        position = (self.seq_lens - ends)[pairs.request] + pairs.tile * blocks.rows + pairs.begin
        by_head = jnp.swapaxes(self.query, 0, 1)
        weights = (self.w_uk, self.w_uv)
        made = tpu_prompt.attend(
            self.block_tables, pairs, position, by_head, *weights, self.kv_cache, self.meaning, blocks
        )
        request, position = rows_of(tokens, self.seq_lens, self.query_start_loc)
        return jnp.where((chosen[request] & (position >= 0))[:, None, None], jnp.swapaxes(made, 0, 1), 0)


class _Short(Batch):
    """A batch without the rows of requests that have `below` or more."""

    def __init__(self, refs: Refs, meaning: Meaning, blocks: Blocks, cores: int, kv_heads: int, below: int) -> None:
        super().__init__(refs, meaning, blocks, cores, kv_heads)
        self.below = below

    def rows_of(self, request: Scalar) -> Scalar:
        rows = super().rows_of(request)
        return jnp.where(rows < self.below, rows, 0)


def projected(equation: str, rows: Array, weights: Array) -> Array:
    """Rows times each head's projection, in their dtype: on a TPU the sums are float32 all the same."""
    precision = jax.lax.Precision.HIGHEST if rows.dtype == jnp.float32 else None
    return jnp.einsum(equation, rows, weights, precision=precision)


def attend(
    scalars: tuple[Array, ...],
    query: Array,
    kv_cache: Array,
    latent: int,
    meaning: Meaning,
    blocks: Blocks,
    cores: int,
    below: int,
) -> Array:
    """Rows [T, N, latent] of what the heads attend to, of requests with fewer than `below` rows. scalars: flattened block_tables,
    seq_lens, query_start_loc; query [T, N, latent + rotary], N a multiple of 16."""
    tokens, heads, size = query.shape
    two = pltpu.SemaphoreType.DMA((2,))

    def kernel(
        tables: Any, lengths: Any, starts: Any, query: Any, cache: Any, output: Any, pages: Any, tiles_in: Any, tiles_out: Any,
        highest: Any, total: Any, sums: Any, pages_here: Any, tile_here: Any, tile_gone: Any, leaving: Any,
    ) -> None:  # fmt: skip
        refs = Refs(
            tables, lengths, starts, None, query, cache, output, pages, None, tiles_in, None, tiles_out, highest, total, sums,
            pages_here, tile_here, tile_gone, leaving,
        )  # fmt: skip
        batch = (
            _Short(refs, meaning, blocks, cores, 1, below)
            if below <= tokens
            else Batch(refs, meaning, blocks, cores, 1)
        )
        copies = Copies(batch)
        Loop(batch, copies, LatentSoftmax(batch, copies)).run()

    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars), grid=(cores,), in_specs=[ANYWHERE, ANYWHERE], out_specs=ANYWHERE,
            scratch_shapes=[
                pltpu.VMEM((2, blocks.keys, size), kv_cache.dtype),
                pltpu.VMEM((2, blocks.tile, heads, size), query.dtype),
                pltpu.VMEM((2, blocks.tile, heads, latent), query.dtype),
                pltpu.VMEM((blocks.rows, 128), jnp.float32),
                pltpu.VMEM((blocks.rows, 128), jnp.float32),
                pltpu.VMEM((blocks.rows, latent), jnp.float32),
                two, two, two, pltpu.SMEM((2,), jnp.int32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((tokens, heads, latent), query.dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=blocks.vmem * 5 // 4, disable_bounds_checks=True
        ),
        name="paged_latent_attention",
    )(*scalars, query, kv_cache)  # fmt: skip

"""Latent attention gets a cache: what is computed in one go, in two chunks and without a cache is the same."""

from __future__ import annotations

import torch
from step_decoder import run_eager
from test_step_passes import BLOCK, BLOCKS, PAGES, TOKENS, metadata

from fxhlo.kernels.catalog import register_torch_ops
from fxhlo.lowering.capture.callable import Input, capture_callable
from fxhlo.passes.fx.donate import Donate
from fxhlo.passes.fx.latent_attention import LatentAttention
from fxhlo.passes.fx.paged_attention import PagedAttention
from fxhlo.passes.pipeline import run, verify
from fxhlo.passes.program import Program

HEADS, NOPE, LATENT, ROTARY, WINDOW = 3, 5, 8, 4, 6


class Both(torch.nn.Module):
    """Layers with latents, the first with an indexer, and one with keys and values: they share the inputs."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.w_uk = torch.nn.Parameter(torch.randn(HEADS, NOPE, LATENT, generator=generator))
        self.w_uv = torch.nn.Parameter(torch.randn(HEADS, LATENT, NOPE, generator=generator))

    def forward(self, query: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        positive = query.abs()  # no score is 0, so that none are equal
        narrow = latent.abs()[:, : NOPE + ROTARY]
        selected = torch.ops.fxhlo.lightning_index(positive, narrow, positive[:, :, 0], layer="i", count=4)
        for layer, window, only in (("a", 0, selected), ("b", WINDOW, None)):
            attended = torch.ops.fxhlo.latent_attention(
                query, latent, self.w_uk, self.w_uv, only, layer=layer, scale=0.4, sliding_window=window
            )
            query = query + torch.nn.functional.pad(attended, (0, ROTARY))
        keys = narrow[:, None].expand(-1, HEADS, -1)
        return torch.ops.fxhlo.attention(
            query, keys, keys, None, None, layer="c", scale=0.4, sliding_window=0, soft_cap=0.0
        )


def program() -> Program:
    register_torch_ops()
    inputs = [
        Input("query", ("tokens", HEADS, NOPE + ROTARY), torch.float32),
        Input("latent", ("tokens", LATENT + ROTARY), torch.float32),
        Input("logit_rows", ("requests",), torch.int32),
    ]
    module = Both()
    ranges = {"tokens": (1, 64), "requests": (1, 8)}
    return capture_callable(
        lambda query, latent, logit_rows: module(query, latent), module, inputs, ranges, results=("attended",)
    )


def rows() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {
        "query": torch.randn(TOKENS, HEADS, NOPE + ROTARY),
        "latent": torch.randn(TOKENS, LATENT + ROTARY),
        "logit_rows": torch.zeros(1).int(),
    }


def caches() -> dict[str, torch.Tensor]:
    latents = {f"kv_cache.{layer}": (BLOCKS, BLOCK, LATENT + ROTARY) for layer in "ab"}
    others = {"kv_cache.i": (BLOCKS, BLOCK, NOPE + ROTARY), "kv_cache.c": (BLOCKS, BLOCK, 2 * HEADS, NOPE + ROTARY)}
    shapes = latents | others
    return {name: torch.full(shape, float("nan")) for name, shape in shapes.items()}


def test_in_chunks_and_in_one_go() -> None:
    before = program()
    after = run([PagedAttention(BLOCK, PAGES), LatentAttention(BLOCK, PAGES), Donate()], before, [verify])
    assert torch.ops.fxhlo.latent_attention.default not in [node.target for node in after.graph.nodes]
    names = [argument.name for argument in after.arguments if argument.kind == "input"]
    assert len(names) == len(set(names)), "both passes add the same inputs"
    inputs, table = rows(), [7, 2, 5, 0]
    expected = run_eager(before, inputs)["attended"]
    whole = run_eager(after, {**inputs, **metadata(table), **caches()})
    torch.testing.assert_close(whole["attended"], expected)
    held, parts = caches(), []
    for first, last in ((0, 6), (6, TOKENS)):
        part = {name: inputs[name][first:last] for name in ("query", "latent")}
        given = {**inputs, **part, **metadata(table, last - first, first), **held}
        results = run_eager(after, given)
        held = {name: results[f"{name}.updated"] for name in held}
        parts.append(results["attended"])
    torch.testing.assert_close(torch.cat(parts), expected)

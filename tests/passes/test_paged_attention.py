"""Attention gets a cache where it remembers; an encoder's stays as it is."""

from __future__ import annotations

import torch
from torch import fx

from fxhlo.kernels.catalog import register_torch_ops
from fxhlo.passes.fx.paged_attention import _sites


def test_an_encoder_has_nothing_to_keep() -> None:
    register_torch_ops()
    graph = fx.Graph()
    rows = graph.placeholder("rows")
    fixed = {"scale": 1.0, "sliding_window": 0, "soft_cap": 0.0}

    def attend(**named: object) -> fx.Node:
        return graph.call_function(
            torch.ops.fxhlo.attention.default, (rows, rows, rows, None, None), {**fixed, **named}
        )

    remembers, said = attend(layer="model.layers.0"), attend(layer="model.layers.1", causal=True)
    attend(layer="vision.0", causal=False)
    attend(layer="", causal=True)  # torch's own attention, called by the model itself
    assert _sites(graph) == [remembers, said]

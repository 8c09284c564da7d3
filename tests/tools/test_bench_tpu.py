"""The TPU part of the benchmark: its decoder is a decoder, and what it says of a compiled step is the compiler's."""

from __future__ import annotations

import pytest
import torch

from fxhlo.lowering.lower import lower
from fxhlo.runtime import pjrt
from fxhlo.tools.bench import tpu
from fxhlo.tools.bench.decoder import SHAPES, Decoder, Shape, exported

SMALL = {
    **tpu.CONFIG, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "vocab_size": 512, "num_hidden_layers": 2,
}  # fmt: skip


def caches(config: dict, requests: int, context: int) -> list[torch.Tensor]:
    shape = (requests, context, config["num_key_value_heads"], config["head_dim"])
    return [torch.zeros(shape) for _ in range(2 * config["num_hidden_layers"])]


def test_the_decoder_gives_the_same_token_by_token_as_at_once() -> None:
    torch.manual_seed(0)
    model, ids = Decoder(SMALL).eval(), torch.randint(0, 512, (2, 6))
    with torch.no_grad():
        together, filled = model(ids, torch.arange(6).expand(2, 6), caches(SMALL, 2, 8))
        state = caches(SMALL, 2, 8)
        for place in range(6):
            alone, state = model(ids[:, place : place + 1], torch.full((2, 1), place), state)
    assert torch.equal(alone, together)
    for one, other in zip(state, filled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_lowered_decoder_computes_what_it_does_in_torch() -> None:
    torch.manual_seed(0)
    model = Decoder(SMALL).eval()
    arguments = (torch.randint(0, 512, (2, 5)), torch.arange(5).repeat(2, 1), caches(SMALL, 2, 8))
    with torch.no_grad():
        token, state = model(*arguments)
    results = lower(model, arguments).compile()(arguments[0], arguments[1], *arguments[2])
    assert torch.equal(torch.from_dlpack(results[0]), token)
    for mine, wanted in zip(results[1:], state, strict=True):
        torch.testing.assert_close(torch.from_dlpack(mine), wanted, rtol=1e-4, atol=1e-5)


def test_a_figure_and_its_table() -> None:
    shape = Shape("decode", 8, 1, 128)
    module = lower(exported(SMALL, shape))
    assert not module.arrays(), "no weight has values"
    figure = tpu._ours(module, "tpu-v6e", shape.name, 2, tpu.OURS)
    products = 2 * 8 * (2 * (256 * 512 + 256 * 256 + 3 * 256 * 512) + 256 * 512)  # of weights, two layers and the head
    attention = 2 * 2 * 2 * 8 * 4 * 128 * 64
    assert figure.counted_flops == products + attention
    assert figure.flops is not None and figure.flops >= products
    assert figure.roofline is not None and figure.bound is not None and figure.bound >= figure.roofline > 0
    (table,) = tpu.tables([figure])
    assert table.row_count == 1


@pytest.mark.conformance
def test_torchax_lowers_the_same_decoder() -> None:
    shape = SHAPES["decode"]
    peer = tpu._torchax(SMALL, shape, print)
    compiled = pjrt.compile_ahead(peer, "tpu-v6e")
    ours = tpu._ours(lower(exported(SMALL, shape)), "tpu-v6e", shape.name, 2, tpu.OURS)
    assert ours.bytes is not None and ours.bytes <= compiled.costs["bytes accessed"]

"""Decode, prefill and long contexts in tokens a second, beside vLLM's own CPU backend, and beside the most that the processor could do.

Three parts of the bench (`PARTS`), each with SmolLM2-135M's shape: any number of sequences, prompts up to 16,000 tokens, each dtype, and with
the instruction sets of AVX2 alone in both engines. `at most`: the tokens a second of a step that reads each weight and the cache of each
request once, at the memory's bandwidth, or multiplies at the processor's peak, whichever takes longer (limits.py).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ...runtime.core.dtypes import dtype_of
from ..prepare_model import prepare
from .engine import Engine
from .limits import AVX2, Limits, Work
from .serving import OURS, PEER, Measure, Sizes, in_turn, new_prompts

ROUNDS, FAST_ROUNDS = 5, 3
WITHOUT_AVX512 = """import torch
for _name in ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported"):
    if hasattr(torch.cpu, _name):
        setattr(torch.cpu, _name, lambda: False)
"""
"""Run in each of the peer's processes: its extension module is the one for AVX2."""


@dataclass(frozen=True)
class Point:
    """One figure. prompt: tokens of each; decode: tokens of each answer after the first; 0: the prompts alone are measured."""

    sequences: int
    prompt: int
    decode: int = 0

    def __str__(self) -> str:
        if not self.decode:
            return f"prefill, {self.sequences} x {self.prompt:,} tokens"
        return f"decode, {self.sequences} sequences after {self.prompt:,} tokens"


@dataclass(frozen=True)
class Part:
    """Figures of one model. long: prompts are longer than SmolLM2's own positions, so weights are vLLM's dummy ones."""

    points: tuple[Point, ...]
    fast: tuple[Point, ...]
    max_model_len: int
    long: bool = False


PARTS: Mapping[str, Part] = {
    "decode": Part(
        tuple(Point(count, 32, 128) for count in (1, 8, 32, 64)),
        tuple(Point(count, 32, 32) for count in (1, 8, 32, 64)),
        1024,
    ),
    "prefill": Part(
        tuple(Point(count, length) for length in (128, 900, 4000) for count in (1, 8, 32)),
        (Point(1, 128), Point(32, 128), Point(1, 900), Point(8, 900), Point(1, 4000)),
        4224,
    ),
    "contexts": Part(
        (*(Point(count, length, 32) for length in (4000, 16_000) for count in (1, 4)), Point(1, 16_000)),
        (Point(1, 4000, 16), Point(4, 4000, 16)),
        16_384,
        long=True,
    ),
}


@dataclass(frozen=True)
class Row:
    """Tokens a second of both, the median of the rounds' ratios, and what the limits allow. bound: "memory" or "arithmetic"."""

    what: str
    ours: float
    peer: float
    ratio: float
    most: float
    bound: str


def measure(name: str, dtype: str, isa: str, say: Callable[[str], None], *, fast: bool) -> list[Row]:
    """Measures the points of one part in turn. isa: "avx2", or empty for all that the processor has."""
    part = PARTS[name]
    points, limits = part.fast if fast else part.points, Limits.measure(isa)
    say(f"the processor's limits: {limits}")
    sizes = Sizes(rounds=FAST_ROUNDS if fast else ROUNDS)
    with tempfile.TemporaryDirectory(prefix="fxhlo-bench-") as folder:
        model, more = _model(part, Path(folder), say)
        arguments = {
            "model": str(model), "dtype": dtype, "max_model_len": part.max_model_len, "max_num_seqs": max(point.sequences for point in points),
            "max_num_batched_tokens": 2048, "enable_prefix_caching": part.long, "seed": 0, "disable_log_stats": True,
            "skip_tokenizer_init": True, **more,
        }  # fmt: skip
        decoder = Decoder.of(json.loads((model / "config.json").read_text()), dtype)
        cache = Path(folder)
        with (
            Engine(OURS, arguments, fxhlo=True, cache=cache, environment=ours_with(isa)) as ours,
            Engine(
                PEER, arguments, fxhlo=False, cache=cache, environment=peer_with(isa), first=first_of_peer(isa)
            ) as peer,
        ):
            ours.first_token(), peer.first_token()
            found = [
                (point, in_turn(str(point), _rate(point, cached=part.long), ours, peer, sizes, say)) for point in points
            ]
    return [_row(point, measured, decoder, limits, dtype) for point, measured in found]


def table(rows: Sequence[Row], title: str) -> Table:
    """A row per figure: ours, the peer's, how many times better ours is, and how near to the limit it comes."""
    made = Table("", OURS, PEER, "times better", "at most", "of that", "bound by", title=title)
    for row in rows:
        made.add_row(
            row.what, *(f"{value:,.0f}" for value in (row.ours, row.peer)), f"{row.ratio:.2f}", f"{row.most:,.0f}",
            f"{row.ours / row.most:.0%}", row.bound,
        )  # fmt: skip
    return made


# -- instruction sets --------------------------------------------------------------------------------------------------


def ours_with(isa: str) -> dict[str, str]:
    """Environment of our engine: its kernels are built for the instruction set, and XLA keeps to it."""
    if isa != "avx2":
        return {}
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_max_isa=AVX2".strip()
    return {"CXX": f"{os.environ.get('CXX', 'g++')} {AVX2}", "XLA_FLAGS": flags}


def peer_with(isa: str) -> dict[str, str]:
    """Environment of the peer: oneDNN and torch keep to the instruction set."""
    return {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"} if isa == "avx2" else {}


def first_of_peer(isa: str) -> str:
    """Python that runs first in the peer's processes, which choose its extension module."""
    return WITHOUT_AVX512 if isa == "avx2" else ""


# -- work --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoder:
    """What a dense decoder multiplies. layer, head: weights of a layer's matmuls, and of the head's; cache: bytes that a token leaves in all layers."""

    layers: int
    layer: int
    head: int
    heads: int
    head_size: int
    cache: int
    itemsize: int

    @classmethod
    def of(cls, config: Mapping[str, Any], dtype: str) -> Decoder:
        size, layers, itemsize = config["hidden_size"], config["num_hidden_layers"], dtype_of(dtype).itemsize
        heads, kv_heads, head_size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
        layer = size * head_size * (2 * heads + 2 * kv_heads) + 3 * size * config["intermediate_size"]
        cache = layers * 2 * kv_heads * head_size * itemsize
        return cls(layers, layer, config["vocab_size"] * size, heads, head_size, cache, itemsize)

    def step(self, point: Point) -> Work:
        """A decode step, half way through the answers."""
        context = point.prompt + point.decode / 2
        weights = self.layers * self.layer + self.head
        attention = 4 * self.layers * self.heads * self.head_size * context
        return Work(
            weights * self.itemsize + point.sequences * context * self.cache,
            point.sequences * (2 * weights + attention),
        )

    def prompts(self, point: Point) -> Work:
        """All prompts, with causal attention and one row of logits each. What they read is little beside."""
        attention = 2 * self.layers * self.heads * self.head_size * point.prompt**2
        linear = 2 * self.layers * self.layer * point.prompt + 2 * self.head
        return Work((self.layers * self.layer + self.head) * self.itemsize, point.sequences * (linear + attention))


def _row(point: Point, found: Measure, decoder: Decoder, limits: Limits, dtype: str) -> Row:
    work, tokens = (decoder.step(point), 1) if point.decode else (decoder.prompts(point), point.prompt)
    by_memory = work.bytes / limits.bandwidth >= work.flops / limits.of(dtype)
    most = point.sequences * tokens / limits.seconds(work, dtype)
    return Row(found.what, found.ours, found.peer, found.ratio, most, "memory" if by_memory else "arithmetic")


def _rate(point: Point, *, cached: bool) -> Callable[[Engine], float]:
    """Tokens a second. cached: prompts are in the prefix cache before an answer is measured."""

    def decode(engine: Engine) -> float:
        prompts = new_prompts(point.sequences, point.prompt)
        if cached:
            engine.run(prompts, 1)
        first = engine.run(prompts, 1)
        return point.sequences * point.decode / (engine.run(prompts, 1 + point.decode) - first)

    def prefill(engine: Engine) -> float:
        return point.sequences * point.prompt / engine.run(new_prompts(point.sequences, point.prompt), 1)

    return decode if point.decode else prefill


def _model(part: Part, folder: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, object]]:
    """The model's folder, and the engines' arguments for it."""
    real = prepare(say=say)
    if not part.long:
        return real, {}
    made = folder / "long"
    made.mkdir()
    config = json.loads((real / "config.json").read_text()) | {"max_position_embeddings": part.max_model_len}
    (made / "config.json").write_text(json.dumps(config))
    return made, {"load_format": "dummy"}

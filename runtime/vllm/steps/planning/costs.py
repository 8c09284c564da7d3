"""What a step costs: the model by which plans are compared.

A program of T rows of tokens and R requests takes

    cost(T, R) = fixed + max(weights, T) + head * R        in the time that one token's row takes in the layers

`head`: a request's row of logits, by its products beside those of a token's row in the layers, and its sampling. `weights`: rows
from which on the layers take longer than reading their weights; below, more rows cost nothing. `fixed`: what every step costs besides.
Attention is left out: rows of padding attend to nothing. Only ratios of costs matter to a plan, so none of them has to be a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ....core.targets import Target

if TYPE_CHECKING:
    from vllm.config import VllmConfig

FIXED_CPU = 6.0
"""Rows that a step's fixed part is worth on a CPU, from decoding at 1, 8 and 32: 16, 23 and 66 ms with AVX-512, without AMX. A CPU
computes while it reads, and its caches hold no weights: time is a line, without a floor."""
FIXED_DEVICE = 8.0
"""Rows that a step's fixed part, dispatch and transfer, is worth on an accelerator."""
SAMPLING = {"cpu": 0.05, "tpu": 1.0}
"""Rows that sampling one request's token is worth, by family: on a CPU next to nothing, on a TPU what docs/measured.md has of the sampling
kernels, beside the layers of an 8-billion-parameter model."""
SECONDS_PER_LAYER = {"cpu": 0.008, "tpu": 0.25}
"""Seconds in which one program is emitted and compiled, per layer, by family of targets (docs/measured.md)."""
BYTES_PER_LAYER = {"cpu": 12_000, "tpu": 200_000}
"""Bytes of one compiled program, per layer."""


@dataclass(frozen=True)
class Costs:
    """The numbers of the formula above; seconds and program_bytes: what one more program takes at the first start, and in memory."""

    head: float = 0.25
    fixed: float = FIXED_CPU
    weights: float = 0.0
    seconds: float = 0.3
    program_bytes: int = 400_000

    def of(self, tokens: np.ndarray | int, requests: np.ndarray | int) -> np.ndarray:
        """The cost of programs, or of steps that have one of their own size."""
        return self.fixed + np.maximum(self.weights, tokens) + self.head * np.asarray(requests)

    @classmethod
    def of_engine(cls, config: VllmConfig, target: Target) -> Costs:
        """From a model's config and its target."""
        text = config.model_config.hf_text_config
        layers = max(config.model_config.get_total_num_hidden_layers(), 1)
        pooling = config.model_config.runner_type == "pooling"
        family = target.family
        head = config.model_config.get_vocab_size() / (layers * _widths(text)) + SAMPLING.get(family, SAMPLING["tpu"])
        return cls(
            head=0.0 if pooling else head,
            fixed=FIXED_CPU if family == "cpu" else FIXED_DEVICE,
            weights=_rows_of_weights(target, str(config.model_config.dtype).removeprefix("torch.")),
            seconds=layers * SECONDS_PER_LAYER.get(family, SECONDS_PER_LAYER["tpu"]),
            program_bytes=layers * BYTES_PER_LAYER.get(family, BYTES_PER_LAYER["tpu"]),
        )


def _widths(text: object) -> float:
    """Elements of one layer's weights that a token meets, over the hidden size: query, key, value and output, and the MLP or its experts.

    An estimate for any kind of layer: a vocabulary of this many rows would cost as much as a layer.
    """

    def number(*names: str, default: float) -> float:
        found = (getattr(text, name, None) for name in names)
        return next((float(one) for one in found if isinstance(one, (int, float)) and one > 0), default)

    hidden = number("hidden_size", "n_embd", "d_model", default=1024)
    heads = number("num_attention_heads", "n_head", default=8)
    size = number("head_dim", default=hidden / heads)
    keys = number("num_key_value_heads", default=heads)
    inner = number("intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    taken = number("num_experts_per_tok", "num_experts_per_token", "moe_top_k", default=0)
    if taken:
        inner = taken * number("moe_intermediate_size", "expert_ffn_hidden_size", default=inner)
    return 2 * size * (heads + keys) + 3 * inner


def _rows_of_weights(target: Target, dtype: str) -> float:
    """Rows that a device computes while it reads the weights once; 0 where its rates are not known."""
    rate, bandwidth = target.flops(dtype) or target.flops("bfloat16"), target.bandwidth
    if not rate or not bandwidth:
        return 0.0
    item = 4 if dtype == "float32" else 2
    return rate / bandwidth * item / 2  # two operations for each element read

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
"""Rows that a step's fixed part, dispatch and transfer, is worth on an accelerator. An estimate, on which nothing depends: the plan is the same from 0
to 100, for the rows of `weights` are more (tests/vllm/test_planning.py)."""
SAMPLING_CPU = 0.05
"""Rows that sampling one request's token is worth on a CPU: next to nothing."""
SAMPLING_OTHERS = 1.0
"""The same on a device of which nothing is known."""
CYCLES_PER_LOGIT = 0.2
"""Of a TPU's sampling kernels, `sample` and `process_logits`: libtpu's figures for 64 rows of 128,256 logits are 1,495,323 and 77,240 cycles on v6e,
1,542,599 and 82,753 on v5e (docs/measured.md)."""
MATRIX_UNITS = 4
"""Of a TensorCore. With it the clock that follows from libtpu's peak of bfloat16 is 1.05 GHz for v4, 1.5 for v5e and v5p, 1.75 for v6e, 1.9 for 7x."""
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
        vocabulary, elements = config.model_config.get_vocab_size(), layers * _widths(text)
        head = vocabulary / elements + _sampling(target, vocabulary, elements * _hidden(text))
        return cls(
            head=0.0 if pooling else head,
            fixed=FIXED_CPU if family == "cpu" else FIXED_DEVICE,
            weights=_rows_of_weights(target, str(config.model_config.dtype).removeprefix("torch.")),
            seconds=layers * SECONDS_PER_LAYER.get(family, SECONDS_PER_LAYER["tpu"]),
            program_bytes=layers * BYTES_PER_LAYER.get(family, BYTES_PER_LAYER["tpu"]),
        )


def _sampling(target: Target, vocabulary: int, elements: float) -> float:
    """Rows that sampling one request's token is worth. elements: of the weights that a token's row meets in the layers."""
    if target.family == "cpu":
        return SAMPLING_CPU
    a_cycle = 2 * MATRIX_UNITS * target.mxu**2 * target.cores  # operations
    return CYCLES_PER_LOGIT * vocabulary * a_cycle / (2 * elements) if a_cycle else SAMPLING_OTHERS


def _widths(text: object) -> float:
    """Elements of one layer's weights that a token meets, over the hidden size: query, key, value and output, and the MLP or its experts.

    An estimate for any kind of layer: a vocabulary of this many rows would cost as much as a layer.
    """
    hidden = _hidden(text)
    heads = _number(text, "num_attention_heads", "n_head", default=8)
    size = _number(text, "head_dim", default=hidden / heads)
    keys = _number(text, "num_key_value_heads", default=heads)
    inner = _number(text, "intermediate_size", "n_inner", "ffn_dim", default=4 * hidden)
    taken = _number(text, "num_experts_per_tok", "num_experts_per_token", "moe_top_k", default=0)
    if taken:
        inner = taken * _number(text, "moe_intermediate_size", "expert_ffn_hidden_size", default=inner)
    return 2 * size * (heads + keys) + 3 * inner


def _hidden(text: object) -> float:
    return _number(text, "hidden_size", "n_embd", "d_model", default=1024)


def _number(text: object, *names: str, default: float) -> float:
    """The first of a config's fields that is a number above 0."""
    found = (getattr(text, name, None) for name in names)
    return next((float(one) for one in found if isinstance(one, (int, float)) and one > 0), default)


def _rows_of_weights(target: Target, dtype: str) -> float:
    """Rows that a device computes while it reads the weights once; 0 where its rates are not known."""
    rate, bandwidth = target.flops(dtype) or target.flops("bfloat16"), target.bandwidth
    if not rate or not bandwidth:
        return 0.0
    item = 4 if dtype == "float32" else 2
    return rate / bandwidth * item / 2  # two operations for each element read

"""Every input of an engine step, once: its name, shape by symbol, dtype, and the value that does nothing.

What reads the tables: capture and the passes, which make placeholders of them; runtime/vllm/steps/inputs.py, which says
who fills each, pads them to a program's sizes and compares them with the program's signature; the batch, for dtypes and
neutral values. What the values mean stands with the ops that take them (kernels/<name>/reference.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

Size = TypeVar("Size")  # int, or torch.SymInt where a graph is edited


@dataclass(frozen=True)
class StepInput:
    """One input. Sizes are numbers, symbols ("tokens"), or a symbol and a number ("requests+1").

    neutral: fills the rows of a program beyond those of the step, and everything where no request needs the input; None
    where such a value depends on the step, so that whoever fills the input fills all of it.
    wide: used by few requests and large; where no request of a step needs it, what is neutral stays on the device.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    neutral: float | None = 0
    wide: bool = False

    def shape_in(self, sizes: Mapping[str, Size]) -> tuple[int | Size, ...]:
        """The shape with `sizes` in place of symbols."""
        return shape_in(self.shape, sizes)


def shape_in(shape: tuple[int | str, ...], sizes: Mapping[str, Size]) -> tuple[int | Size, ...]:
    """A shape of numbers, symbols and sums like "requests+1" with `sizes` in place of symbols."""
    return tuple(size if isinstance(size, int) else _size(size, sizes) for size in shape)


def _size(text: str, sizes: Mapping[str, Size]) -> int | Size:
    symbol, plus, more = text.partition("+")
    return sizes[symbol] + int(more) if plus else sizes[symbol]  # type: ignore[operator]


TOKENS = (
    StepInput("input_ids", ("tokens",), "int32"),
    StepInput("positions", ("tokens",), "int32"),
)
"""Of any model."""

MODEL = (*TOKENS, StepInput("logit_rows", ("requests",), "int32"))
"""Of a model that generates. logit_rows: the row of each request's last token, whose logits are computed."""

TOKEN_TYPES = (StepInput("token_type_ids", ("tokens",), "int32"),)
"""Of a model that is told of which of two texts a token is: 0 the first, 1 the second."""

BOUNDS = (StepInput("query_start_loc", ("requests+1",), "int32", neutral=None),)
"""Of layers for which a request's tokens belong together: the first row of each request, and the end of the last."""

PAGED = (
    StepInput("slot_mapping", ("tokens",), "int32", neutral=-1),
    StepInput("block_tables", ("requests", "pages"), "int32"),
    StepInput("seq_lens", ("requests",), "int32"),
    *BOUNDS,
)
"""Of attention over a paged KV cache, in the order in which `fxhlo.ragged_paged_attention` takes them."""

SLOTS = (StepInput("state_slots", ("requests",), "int32"),)
"""Of layers that keep one state per request: the request's row of the state. Row 0 belongs to no request: what a program computes
for its unused rows goes there."""

FEED = (
    StepInput("fed", ("tokens",), "int32", neutral=-1),
    StepInput("last_rows", ("requests",), "int32", neutral=-1),
)
"""Of a step that may start before the host has the tokens of the one before. fed: the row of the state `last_tokens` that holds the
token of a position; -1 where `input_ids` has it. last_rows: the row that keeps the token which a request samples now; -1 for none."""

RECURRENT = (*SLOTS, *PAGED[2:])
"""In the order in which the ops with a state per request, such as `fxhlo.ragged_ssd`, take them."""

PROCESSING = (
    StepInput("flags", (3,), "int32"),
    StepInput("allowed_mask", ("requests", "mask_words"), "int32", neutral=-1, wide=True),
    StepInput("bias_ids", ("requests", "biases"), "int32", neutral=-1, wide=True),
    StepInput("bias_values", ("requests", "biases"), "float32", wide=True),
    StepInput("seen_ids", ("requests", "seen"), "int32", neutral=-1, wide=True),
    StepInput("seen_counts", ("requests", "seen"), "int32", wide=True),
    StepInput("repetition_penalty", ("requests",), "float32", neutral=1),
    StepInput("frequency_penalty", ("requests",), "float32"),
    StepInput("presence_penalty", ("requests",), "float32"),
)
"""In the order in which `fxhlo.process_logits` takes them after the logits."""

DRAW = (
    StepInput("temperature", ("requests",), "float32"),
    StepInput("top_k", ("requests",), "int32"),
    StepInput("top_p", ("requests",), "float32", neutral=1),
    StepInput("min_p", ("requests",), "float32"),
    StepInput("seeds", ("requests", 2), "int32"),
    StepInput("steps", ("requests",), "int32"),
)
"""In the order in which `fxhlo.sample` takes them after the logits."""

LOGPROBS = (
    StepInput("logprobs_enabled", (), "int32"),
    StepInput("grammar_mask", ("requests", "mask_words"), "int32", neutral=-1, wide=True),
)
"""In the order in which `fxhlo.logprobs` takes them after the logits and the tokens. grammar_mask: the part of `allowed_mask` that
comes from structured outputs, which vLLM applies to the logits before it takes log-probabilities of them."""

OFF, ON, RAW = 0, 1, 2
"""Values of `logprobs_enabled`: none; as the engine's logprobs_mode says; of the raw logits, which vLLM shows of prompts in every mode."""

HIDDEN = "hidden"
"""What a model that pools returns: the hidden states of all tokens, [tokens, size] in the model's dtype."""

RESULTS = ("tokens", "logprob_ids", "logprob_values", "logprob_ranks")
"""What sampling makes of the logits: tokens int32 [requests]; ids int32 and values float32 [requests, n + 1]; ranks int32 [requests]."""


def mask_words(vocab_size: int) -> int:
    """Words of 32 bits in a mask with a bit per token."""
    return -(-vocab_size // 32)

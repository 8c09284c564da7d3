"""Kinds of models beside SmolLM2: a mixture of experts, latent attention, a hybrid and an encoder, served by our engine and by
vLLM's own CPU backend, in turn, in one run. Their weights are vLLM's dummy ones, the same for both: speed does not depend on them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from ...runtime.core.dtypes import dtype_of
from ..prepare_model import prepare
from .engine import BenchError, Engine
from .limits import Limits
from .serving import FAST, OURS, PEER, Sizes, decode, in_turn, new_prompts, prefill
from .step_bytes import step_bytes

TEXT = 256
"""Tokens of a text that is embedded."""


@dataclass(frozen=True)
class Shape:
    """A model to measure. config: of its config.json. pooling: it embeds texts instead of generating them."""

    name: str
    config: dict[str, Any]
    pooling: bool = False


@dataclass(frozen=True)
class Row:
    """One figure of one model. peer and ratio are None where the peer does not serve it; `note` says why. most: what the memory's bandwidth allows,
    where a step is bound by that."""

    model: str
    what: str
    unit: str
    ours: float
    peer: float | None
    ratio: float | None
    note: str = ""
    most: float | None = None


COMMON = {"vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "dtype": "bfloat16"}
SHAPES = (
    Shape(
        "Qwen3-MoE-shaped, 64 experts, 8 active",
        {
            **COMMON, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 1024,
            "intermediate_size": 3072, "moe_intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 16,
            "num_key_value_heads": 4, "head_dim": 64, "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": True,
            "decoder_sparse_step": 1, "mlp_only_layers": [], "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
            "hidden_act": "silu", "tie_word_embeddings": False,
        },
    ),
    Shape(
        "DeepSeek-V2-Lite-shaped, 3 of 27 layers",
        {
            **COMMON, "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": 102400,
            "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 3,
            "num_attention_heads": 16, "num_key_value_heads": 16, "n_routed_experts": 64, "n_shared_experts": 2,
            "num_experts_per_tok": 6, "first_k_dense_replace": 1, "kv_lora_rank": 512, "q_lora_rank": None,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "topk_method": "greedy", "n_group": 1,
            "topk_group": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": False, "scoring_func": "softmax",
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
        },
    ),
    Shape(
        "Granite-4.0-H-350M-shaped",
        {
            **COMMON, "architectures": ["GraniteMoeHybridForCausalLM"], "model_type": "granitemoehybrid",
            "hidden_size": 768, "intermediate_size": 2048, "shared_intermediate_size": 2048, "num_hidden_layers": 32,
            "num_attention_heads": 12, "num_key_value_heads": 4, "num_local_experts": 0, "num_experts_per_tok": 0,
            "layer_types": ["attention" if layer in (10, 13, 17, 27) else "mamba" for layer in range(32)],
            "mamba_n_heads": 48, "mamba_d_head": 32, "mamba_d_state": 128, "mamba_n_groups": 1, "mamba_d_conv": 4,
            "mamba_expand": 2, "mamba_chunk_size": 256, "mamba_conv_bias": True, "mamba_proj_bias": False,
            "position_embedding_type": "nope", "attention_multiplier": 0.015625, "embedding_multiplier": 12,
            "residual_multiplier": 0.246, "logits_scaling": 3, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "hidden_act": "silu", "tie_word_embeddings": True,
        },
    ),
    Shape(
        "ModernBERT-base-shaped, 256-token texts",
        {
            **COMMON, "architectures": ["ModernBertModel"], "model_type": "modernbert", "vocab_size": 50368,
            "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22, "num_attention_heads": 12,
            "max_position_embeddings": 1024, "local_attention": 128, "global_attn_every_n_layers": 3,
            "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "hidden_activation": "gelu",
        },
        pooling=True,
    ),
)  # fmt: skip


def measure(say: Callable[[str], None], *, dtype: str, fast: bool) -> list[Row]:
    """Starts both engines for each shape and measures them in turn. say: gets a line of progress.

    All take SmolLM2's tokenizer: vLLM's engines that pool do not start without one.
    """
    sizes, tokenizer, limits = FAST if fast else Sizes(), prepare(say=say), Limits.measure()
    say(f"the processor's limits: {limits}")
    rows = [row for shape in SHAPES for row in _measured(shape, dtype, sizes, tokenizer, say)]
    return [replace(row, most=_most(row, dtype, limits)) for row in rows]


def table(rows: Sequence[Row]) -> Table:
    """A row per figure: ours, the peer's, how many times better ours is."""
    made = Table("model", "", "unit", OURS, PEER, "times better", "memory allows", title="Kinds of models served")
    for row in rows:
        peer = row.note if row.peer is None else f"{row.peer:,.0f}"
        made.add_row(
            row.model, row.what, row.unit, f"{row.ours:,.0f}", peer, "" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.most is None else f"{row.most:,.0f}",
        )  # fmt: skip
    return made


def _most(row: Row, dtype: str, limits: Limits) -> float | None:
    """Tokens a second of a decode row's step that reads what it must at the memory's bandwidth; None for other rows."""
    kind, _, count = row.what.partition(", ")
    if kind != "decode":
        return None
    sequences = int(count.split()[0])
    config = next(shape.config for shape in SHAPES if shape.name == row.model)
    return sequences * limits.bandwidth / step_bytes(config, sequences, dtype_of(dtype).itemsize)


def _measured(shape: Shape, dtype: str, sizes: Sizes, tokenizer: Path, say: Callable[[str], None]) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="fxhlo-bench-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape.config))
        arguments = {
            "model": folder, "tokenizer": str(tokenizer), "dtype": dtype, "load_format": "dummy", "max_model_len": 1024,
            "max_num_seqs": max(sizes.sequences), "max_num_batched_tokens": 1024, "enable_prefix_caching": False,
            "seed": 0, "disable_log_stats": True, **({"runner": "pooling"} if shape.pooling else {}),
        }  # fmt: skip
        say(f"{shape.name}: both engines start")
        with (
            Engine(OURS, arguments, fxhlo=True, cache=Path(folder)) as ours,
            Engine(PEER, arguments, fxhlo=False, cache=Path(folder)) as peer,
        ):
            ours.first_token()
            refused = _refused(peer)
            return [_row(shape, what, rate, ours, peer, refused, sizes, say) for what, rate in _rates(shape, sizes)]


def _refused(peer: Engine) -> str:
    """Empty where the peer has started, else what its log ends with."""
    try:
        peer.first_token()
    except BenchError as problem:
        return f"does not start: {str(problem).splitlines()[-2].strip()[:80]}"
    return ""


def _rates(shape: Shape, sizes: Sizes) -> list[tuple[str, Callable[[Engine], float]]]:
    if shape.pooling:
        return [(f"embed, {count} texts", _embed(count)) for count in sizes.sequences]
    return [
        *((f"decode, {count} sequences", decode(sizes, count)) for count in sizes.sequences),
        *((f"prefill, {count} sequences", prefill(sizes, count)) for count in sizes.sequences),
    ]


def _embed(count: int) -> Callable[[Engine], float]:
    """Tokens a second while `count` texts are embedded."""
    return lambda engine: count * TEXT / engine.run(new_prompts(count, TEXT), 0)


def _row(
    shape: Shape,
    what: str,
    rate: Callable[[Engine], float],
    ours: Engine,
    peer: Engine,
    refused: str,
    sizes: Sizes,
    say: Callable[[str], None],
) -> Row:
    if not refused:
        found = in_turn(f"{shape.name}, {what}", rate, ours, peer, sizes, say)
        return Row(shape.name, what, found.unit, found.ours, found.peer, found.ratio)
    rate(ours)
    rates = sorted(rate(ours) for _ in range(sizes.rounds))
    say(f"{shape.name}, {what}: {OURS} {rates[len(rates) // 2]:,.0f} tokens a second; {PEER} {refused}")
    return Row(shape.name, what, "tokens/s", rates[len(rates) // 2], None, None, refused)

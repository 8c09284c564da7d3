"""Fields of config.json that change what transformers' class computes, and that vLLM's class of the model does not read.

A model whose config says something else than what vLLM's class has fixed in its code would be served wrong without a word, or, where the field
adds a tensor, fail once its weights are loaded. Comes in: a config as vLLM read it. Guaranteed: each field of `FIXED` says what vLLM's
class computes, and each layer has the window that it should have.

The places are of vLLM 0.32; the fields were found by comparing what the two libraries' classes read, and by the random models of
tests/conformance/test_random_models.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UnsupportedError
from .config_sizes import value_of


@dataclass(frozen=True)
class Fixed:
    """field: a name, or names joined by dots. computed: its value in vLLM's class, a set of those that it knows, or a function of the config.
    place: of vLLM.

    when: whether the field means anything with the rest of the config.
    """

    field: str
    computed: Any
    place: str
    when: Callable[[Any], object] = bool


def check_fixed_fields(config: Any, names: Sequence[str], where: Path) -> None:
    """Raises UnsupportedError with every field whose value vLLM's class would ignore. names: of the class, the architecture's first."""
    wrong = list(_wrong(config, fixed_of(names)))
    if wrong:
        raise UnsupportedError(
            f"vLLM's {names[0]} ignores what this config.json says: {'; '.join(wrong)}",
            where=where,
            next_step="serve this model with --model-impl transformers, or correct the field where the weights do not mean it",
        )


def check_windows(layers: Mapping[str, Any], model_config: Any) -> None:
    """Raises UnsupportedError where `layer_types` of config.json gives a layer a window that vLLM's class did not, or the reverse.

    layers: those of the built model that keep something, by name. model_config: vLLM's.
    """
    config = model_config.hf_text_config
    kinds = value_of(config, "layer_types") or ()
    if not value_of(config, "sliding_window"):
        return
    wrong = []
    for name, layer in layers.items():
        found = LAYER.search(name)
        if found is None or not hasattr(layer, "sliding_window"):
            continue
        number = int(found[1])
        kind = kinds[number] if number < len(kinds) else ""
        if kind in WINDOW and WINDOW[kind] != bool(layer.sliding_window):
            wrong.append(f"layer {number} is {kind} and has {'a' if layer.sliding_window else 'no'} window")
    if wrong:
        raise UnsupportedError(
            f"vLLM's {model_config.architecture} ignores layer_types of this config.json: {', '.join(wrong[:4])}",
            where=Path(model_config.model) / "config.json",
            next_step="serve this model with --model-impl transformers",
        )


LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
"""A layer's number in its name."""
WINDOW = {"sliding_attention": True, "full_attention": False}
"""A layer's kind -> whether it has a window."""


def fixed_of(names: Sequence[str]) -> tuple[Fixed, ...]:
    """What the class with these names has fixed, the layers of another class among it."""
    found = next((name for name in names if name in FIXED or name in LAYERS_OF), "")
    return (*FIXED.get(found, ()), *FIXED.get(LAYERS_OF.get(found, ""), ()))


def _wrong(config: Any, fixed: Sequence[Fixed]) -> Iterator[str]:
    for one in fixed:
        value = _value(config, one.field)
        computed = one.computed(config) if callable(one.computed) else one.computed
        same = value in computed if isinstance(computed, frozenset) else _plain(value) == _plain(computed)
        if value is None or same or not one.when(config):
            continue
        told = " or ".join(sorted(computed)) if isinstance(computed, frozenset) else repr(computed)
        yield f"{one.field} is {value!r}, and is computed as {told} ({one.place})"


def _value(config: Any, path: str) -> Any:
    """The value at names joined by dots, of objects and dicts; None where one of them is missing."""
    for name in path.split("."):
        config = config.get(name) if isinstance(config, Mapping) else value_of(config, name)
    return config


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _hidden_over_heads(config: Any) -> int:
    return int(config.hidden_size // config.num_attention_heads)


def _head_dim(place: str) -> Fixed:
    return Fixed("head_dim", _hidden_over_heads, place)


def _silu(place: str) -> Fixed:
    return Fixed("hidden_act", "silu", place)


def _no_bias(field: str, place: str) -> Fixed:
    return Fixed(field, False, place)


def _interleaved_layers(config: Any) -> list[int]:
    """Llama 4's sparse layers, of which vLLM reads the step alone."""
    step = config.interleave_moe_layer_step
    return list(range(step - 1, config.num_hidden_layers, step)) if step else []


def _shares_blocks(config: Any) -> bool:
    """Whether Zamba 2's layers share blocks: untied, transformers has a block for each layer, and vLLM the last one's for all."""
    return list(config.layers_block_type).count("hybrid") > config.num_mem_blocks


def _dense_first(config: Any) -> list[str]:
    """Kinds of layers in the only order that vLLM has: it reads how many are dense."""
    return sorted(value_of(config, "mlp_layer_types") or ())


DENSE_FIRST = Fixed("mlp_layer_types", _dense_first, "deepseek_v2.py:1295")
STEP = Fixed("time_step_limit", [0.0, float("inf")], "mamba_mixer2.py:697")
LATENT = (
    _no_bias("attention_bias", "deepseek_v2.py:1062"),
    Fixed(
        "rope_parameters.rope_type",
        frozenset(("default", "yarn", "deepseek_yarn", "deepseek_llama_scaling")),
        "deepseek_v2.py:1115",
    ),
    Fixed("rope_parameters.attention_factor", None, "rotary_embedding/__init__.py:275"),
    Fixed("rope_parameters.truncate", True, "rotary_embedding/__init__.py:275"),
)
INTERLEAVED = Fixed("rope_interleave", True, "deepseek_v2.py:1126")
GATED = _no_bias("attention_bias", "qwen3_next.py:322")
COHERE = (_no_bias("attention_bias", "commandr.py:213"), _silu("commandr.py:161"))
GRANITE_MOE = (
    _no_bias("attention_bias", "granitemoe.py:184"),
    _silu("granitemoe.py:106"),
    _head_dim("granitemoe.py:170"),
)
UNCAPPED = Fixed("attn_logit_softcapping", None, "gemma3.py")
BERT = (Fixed("is_decoder", False, "bert.py"), Fixed("add_cross_attention", False, "bert.py"))

FIXED: Mapping[str, tuple[Fixed, ...]] = {
    "AfmoeForCausalLM": (_no_bias("attention_bias", "afmoe.py:202"),),
    "AXK1ForCausalLM": (*LATENT, INTERLEAVED),
    "BertModel": BERT,
    "BloomForCausalLM": (Fixed("tie_word_embeddings", True, "bloom.py:364"),),
    "CohereForCausalLM": COHERE,
    "Cohere2ForCausalLM": COHERE,
    "Cohere2MoeForCausalLM": (_no_bias("attention_bias", "cohere2_moe.py:189"), _silu("cohere2_moe.py:142")),
    "DbrxForCausalLM": (
        Fixed("ffn_config.moe_normalize_expert_weights", 1, "dbrx.py:171"),
        Fixed("ffn_config.ffn_act_fn.name", "silu", "dbrx.py:165"),
    ),
    "DeepseekV2ForCausalLM": (*LATENT, _no_bias("mlp_bias", "deepseek_v2.py:264")),
    "DeepseekV3ForCausalLM": (*LATENT, INTERLEAVED),
    "DeepseekV32ForCausalLM": (*LATENT, DENSE_FIRST),
    "Ernie4_5ForCausalLM": (_no_bias("use_bias", "ernie45.py:52"),),
    "Ernie4_5_MoeForCausalLM": (
        _no_bias("use_bias", "ernie45_moe.py:267"),
        Fixed("moe_norm_min", 1e-12, "ernie45_moe.py:190"),
    ),
    "FalconForCausalLM": (
        Fixed("activation", "gelu", "falcon.py:243"),
        Fixed("ffn_hidden_size", lambda config: 4 * config.hidden_size, "falcon.py:236"),
    ),
    "FalconH1ForCausalLM": (
        STEP,
        _no_bias("attention_bias", "falcon_h1.py:262"),
        _no_bias("mlp_bias", "falcon_h1.py:63"),
        Fixed("projectors_bias", lambda config: config.mamba_proj_bias, "falcon_h1.py:125"),
        Fixed("mamba_norm_before_gate", False, "mamba_mixer2.py:75", lambda config: config.mamba_rms_norm),
    ),
    "GemmaForCausalLM": (
        _no_bias("attention_bias", "gemma.py:165"),
        Fixed("use_bidirectional_attention", False, "gemma.py"),
    ),
    "Gemma2ForCausalLM": (Fixed("use_bidirectional_attention", False, "gemma2.py"),),
    "Gemma3ForCausalLM": (UNCAPPED, Fixed("use_bidirectional_attention", False, "gemma3.py")),
    "Gemma3TextModel": (UNCAPPED,),
    "Gemma3nForCausalLM": (Fixed("tie_word_embeddings", True, "gemma3n.py:1163"),),
    "Gemma4ForCausalLM": (Fixed("use_bidirectional_attention", frozenset(("vision",)), "gemma4.py"),),
    "Glm4MoeLiteForCausalLM": (*LATENT, INTERLEAVED, DENSE_FIRST),
    "GlmMoeDsaForCausalLM": (*LATENT, DENSE_FIRST),
    "GPT2LMHeadModel": (Fixed("scale_attn_weights", True, "gpt2.py"),),
    "GptOssForCausalLM": (
        Fixed("attention_bias", True, "gpt_oss.py:143"),
        Fixed("rms_norm_eps", 1e-5, "gpt_oss.py:449"),
        Fixed("rope_parameters.rope_type", "yarn", "gpt_oss.py:116"),
        Fixed("rope_parameters.attention_factor", None, "gpt_oss.py:116"),
        Fixed("swiglu_alpha", 1.702, "gpt_oss.py:401"),
        Fixed("swiglu_limit", 7.0, "gpt_oss.py:401"),
    ),
    "GraniteMoeForCausalLM": GRANITE_MOE,
    "GraniteMoeSharedForCausalLM": GRANITE_MOE,
    "GraniteMoeSWAForCausalLM": GRANITE_MOE,
    "GraniteMoeHybridForCausalLM": (STEP, _head_dim("granitemoehybrid.py:241")),
    "HrmTextForCausalLM": (_no_bias("attention_bias", "hrm_text.py:469"), _no_bias("mlp_bias", "hrm_text.py:469")),
    "HYV3ForCausalLM": (_no_bias("attention_bias", "hy_v3.py:269"), _no_bias("mlp_bias", "hy_v3.py:100"), DENSE_FIRST),
    "JambaForCausalLM": (_head_dim("jamba.py:210"), _silu("jamba.py:91")),
    "KimiLinearForCausalLM": (_no_bias("attention_bias", "kimi_k3/amd/linear.py:405"), DENSE_FIRST),
    "Lfm2ForCausalLM": (_head_dim("lfm2.py:124"),),
    "Lfm2MoeForCausalLM": (_head_dim("lfm2_moe.py:205"),),
    "Llama4ForCausalLM": (
        _no_bias("attention_bias", "llama4.py:335"),
        Fixed("moe_layers", _interleaved_layers, "llama4.py"),
    ),
    "LongcatFlashForCausalLM": (*LATENT, _no_bias("router_bias", "longcat_flash.py:161")),
    "Mamba2ForCausalLM": (STEP,),
    "MiMoV2FlashForCausalLM": (
        Fixed("routed_scaling_factor", 1.0, "mimo_v2.py"),
        *(Fixed(f"rope_parameters.{kind}.rope_type", "default", "mimo_v2.py:286") for kind in WINDOW),
    ),
    "MiniCPM3ForCausalLM": (_no_bias("attention_bias", "minicpm3.py:86"), _no_bias("mlp_bias", "minicpm.py:208")),
    "MiniMaxM2ForCausalLM": (_silu("minimax_m2.py:96"),),
    "MixtralForCausalLM": (_silu("mixtral.py:118"),),
    "ModernBertForSequenceClassification": (Fixed("classifier_activation", "gelu", "modernbert.py:342"),),
    "NomicBertModel": (_head_dim("bert_with_rope.py:113"),),
    "OlmoHybridForCausalLM": (
        _no_bias("attention_bias", "olmo_hybrid.py:113"),
        _head_dim("olmo_hybrid.py:103"),
        _silu("olmo_hybrid.py:204"),
    ),
    "OlmoeForCausalLM": (
        _no_bias("attention_bias", "olmoe.py:158"),
        Fixed("norm_topk_prob", False, "olmoe.py:100"),
        Fixed("clip_qkv", None, "olmoe.py"),
        Fixed("rms_norm_eps", 1e-5, "olmoe.py:239"),
        _head_dim("olmoe.py:147"),
        _silu("olmoe.py:95"),
    ),
    "PhiMoEForCausalLM": (
        Fixed("attention_bias", True, "phimoe.py:339"),
        Fixed("num_experts_per_tok", 2, "phimoe.py:236"),
        _silu("phimoe.py:274"),
    ),
    "Qwen2ForCausalLM": (_head_dim("qwen2.py:150"),),
    "Qwen2MoeForCausalLM": (_head_dim("qwen2_moe.py:225"), Fixed("qkv_bias", True, "qwen2_moe.py:237")),
    "Qwen3ForCausalLM": (_no_bias("attention_bias", "qwen3.py:116"),),
    "Qwen3MoeForCausalLM": (_no_bias("attention_bias", "qwen3_moe.py:297"), _silu("qwen3_moe.py:204")),
    "Qwen3NextForCausalLM": (GATED,),
    "Qwen3_5ForCausalLM": (GATED,),
    "Qwen3_5MoeForCausalLM": (GATED,),
    "RobertaModel": BERT,
    "StableLmForCausalLM": (
        Fixed("qk_layernorm", False, "stablelm.py"),
        Fixed("use_parallel_residual", False, "stablelm.py"),
        _head_dim("stablelm.py:120"),
        _silu("stablelm.py:86"),
    ),
    "XLMRobertaModel": BERT,
    "Zamba2ForCausalLM": (
        Fixed("num_key_value_heads", lambda config: config.num_attention_heads, "zamba2.py:156"),
        Fixed("use_long_context", False, "zamba2.py"),
        Fixed("tie_word_embeddings", True, "zamba2.py:785", _shares_blocks),
    ),
}
"""vLLM's name of the architecture, or of its class -> what its class has fixed."""
LAYERS_OF: Mapping[str, str] = {
    "BertForMaskedLM": "BertModel",
    "BertForSequenceClassification": "BertModel",
    "BertForTokenClassification": "BertModel",
    "BertSpladeSparseEmbeddingModel": "BertModel",
    "BgeM3EmbeddingModel": "RobertaModel",
    "ColBERTLfm2Model": "Lfm2ForCausalLM",
    "GPT2ForSequenceClassification": "GPT2LMHeadModel",
    "HF_ColBERT": "BertModel",
    "JambaForSequenceClassification": "JambaForCausalLM",
    "JinaForRanking": "Qwen3ForCausalLM",
    "Qwen2ForProcessRewardModel": "Qwen2ForCausalLM",
    "Qwen2ForRewardModel": "Qwen2ForCausalLM",
    "RobertaForMaskedLM": "RobertaModel",
    "RobertaForSequenceClassification": "RobertaModel",
    "RobertaForTokenClassification": "RobertaModel",
    "VoyageQwen3BidirectionalEmbedModel": "Qwen3ForCausalLM",
    "XLMRobertaForSequenceClassification": "RobertaModel",
    "XLMRobertaForTokenClassification": "RobertaModel",
}
"""A class of vLLM's with a pooler of its own -> whose layers it has."""

"""A model that vLLM does not have, as somebody outside would write it, and the process that serves it and others of its kind.

`main` serves each folder of its arguments and prints the greedy tokens as a line of JSON. RegisteredForCausalLM is registered here by
`ModelRegistry.register_model`; PluginForCausalLM by `plugin`, which a package's entry point names, and which vLLM calls.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable

import torch
from torch import nn
from vllm import LLM, ModelRegistry, SamplingParams
from vllm.config import VllmConfig
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

FUSED: dict[str, tuple[str, str | int]] = {
    "q_proj": ("qkv_proj", "q"), "k_proj": ("qkv_proj", "k"), "v_proj": ("qkv_proj", "v"),
    "gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1),
}  # fmt: skip


class Layer(nn.Module):
    def __init__(self, config, cache_config, prefix: str) -> None:
        super().__init__()
        heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.hidden_size
        head = size // heads
        self.splits = [heads * head, kv_heads * head, kv_heads * head]
        self.input_layernorm = RMSNorm(size, eps=config.rms_norm_eps)
        self.qkv_proj = QKVParallelLinear(size, head, heads, kv_heads, bias=False, prefix=f"{prefix}.qkv_proj")
        self.rotary = get_rope(head, config.max_position_embeddings, rope_parameters=config.rope_parameters)
        self.attn = Attention(heads, head, head**-0.5, kv_heads, cache_config=cache_config, prefix=f"{prefix}.attn")
        self.o_proj = RowParallelLinear(heads * head, size, bias=False, prefix=f"{prefix}.o_proj")
        self.post_attention_layernorm = RMSNorm(size, eps=config.rms_norm_eps)
        both = [config.intermediate_size] * 2
        self.gate_up_proj = MergedColumnParallelLinear(size, both, bias=False, prefix=f"{prefix}.gate_up_proj")
        self.activation = SiluAndMul()
        self.down_proj = RowParallelLinear(both[0], size, bias=False, prefix=f"{prefix}.down_proj")

    def forward(self, positions: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv_proj(self.input_layernorm(x))[0].split(self.splits, dim=-1)
        q, k = self.rotary(positions, q, k)
        x = x + self.o_proj(self.attn(q, k, v))[0]
        return x + self.down_proj(self.activation(self.gate_up_proj(self.post_attention_layernorm(x))[0]))[0]


class OutOfTreeForCausalLM(nn.Module):
    """A decoder that reads Llama's weights."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        names = [f"{prefix}layers.{index}" for index in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList([Layer(config, vllm_config.cache_config, name) for name in names])
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        x = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            x = layer(positions, x)
        return self.norm(x)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        parameters, loaded = dict(self.named_parameters()), set()
        for given, tensor in weights:
            *parents, last, kind = given.removeprefix("model.").replace("self_attn.", "").replace("mlp.", "").split(".")
            fused, shard = FUSED.get(last, (last, None))
            name = ".".join([*parents, fused, kind])
            loader = getattr(parameters[name], "weight_loader", default_weight_loader)
            loader(parameters[name], tensor, *[] if shard is None else [shard])
            loaded.add(name)
        return loaded


def plugin() -> None:
    """What the entry point of group vllm.general_plugins names. vLLM imports the class when it is needed."""
    ModelRegistry.register_model("PluginForCausalLM", "out_of_tree:OutOfTreeForCausalLM")


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to stdout
    ModelRegistry.register_model("RegisteredForCausalLM", OutOfTreeForCausalLM)
    prompts, new_tokens = json.loads(sys.stdin.readline())
    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
    for folder in sys.argv[1:]:
        llm = LLM(
            folder, max_model_len=256, max_num_seqs=4, max_num_batched_tokens=8, kv_cache_memory_bytes=16 << 20, dtype="float32",
            skip_tokenizer_init=True, trust_remote_code=True, model_impl="transformers" if folder.endswith("-impl") else "auto",
        )  # fmt: skip
        outputs = llm.generate([{"prompt_token_ids": one} for one in prompts], params, use_tqdm=False)
        answer = [list(output.outputs[0].token_ids) for output in outputs]
        model = llm.llm_engine.model_executor.driver_worker.worker.get_model()
        print(json.dumps({"class": type(model).__name__, "tokens": answer}), file=out, flush=True)
        llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()

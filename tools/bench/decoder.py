"""A Llama decoder's step in plain torch, without vLLM, which torchax and fxhlo both lower for `make bench BENCH="--only tpu"`.

Grouped heads, rotary positions, RMS norms, a gated MLP; keys and values in one dense cache per layer, an argument and
a result of the step. The shapes come from a config.json, so that it is the model that vLLM serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """requests: each with `tokens` new tokens and room for `context` tokens in the cache, the new ones included."""

    name: str
    requests: int
    tokens: int
    context: int


SHAPES = {shape.name: shape for shape in (Shape("decode", 64, 1, 1024), Shape("prefill", 1, 1024, 1024))}


class Layer(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        size, inner = config["hidden_size"], config["intermediate_size"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_size, self.epsilon = config["head_dim"], config["rms_norm_eps"]
        self.qkv = nn.Linear(size, (self.heads + 2 * self.kv_heads) * self.head_size, bias=False)
        self.out = nn.Linear(self.heads * self.head_size, size, bias=False)
        self.gate_up = nn.Linear(size, 2 * inner, bias=False)
        self.down = nn.Linear(inner, size, bias=False)
        self.before, self.after = nn.Parameter(torch.ones(size)), nn.Parameter(torch.ones(size))

    def forward(
        self,
        hidden: Tensor,
        positions: Tensor,
        turned: tuple[Tensor, Tensor],
        mask: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        requests, tokens, _ = hidden.shape
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        qkv = self.qkv(normed(hidden, self.before, self.epsilon)).view(requests, tokens, sum(sizes), self.head_size)
        query, key, value = qkv.split(sizes, dim=2)
        query, key = rotated(query, *turned), rotated(key, *turned)
        row = torch.arange(requests, device=hidden.device)[:, None]
        keys = keys.index_put((row, positions), key)
        values = values.index_put((row, positions), value)
        attended = functional.scaled_dot_product_attention(
            query.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask, enable_gqa=True
        )
        hidden = hidden + self.out(attended.transpose(1, 2).reshape(requests, tokens, -1))
        gate, up = self.gate_up(normed(hidden, self.after, self.epsilon)).chunk(2, dim=-1)
        return hidden + self.down(functional.silu(gate) * up), keys, values


class Decoder(nn.Module):
    """forward(ids int64 [B, S], positions int64 [B, S], caches: keys and values [B, C, Hkv, D] a layer) -> token ids [B], caches."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList([Layer(config) for _ in range(config["num_hidden_layers"])])
        self.norm = nn.Parameter(torch.ones(config["hidden_size"]))
        self.head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)

    def forward(self, ids: Tensor, positions: Tensor, caches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        hidden = self.embed(ids)
        half = self.config["head_dim"] // 2
        rates = self.config["rope_theta"] ** (-torch.arange(half, dtype=torch.float32, device=ids.device) / half)
        angles = positions[..., None].to(torch.float32) * rates
        turned = (angles.cos().to(hidden.dtype)[:, :, None], angles.sin().to(hidden.dtype)[:, :, None])
        mask = (torch.arange(caches[0].shape[1], device=ids.device) <= positions[..., None])[:, None]
        made: list[Tensor] = []
        for place, layer in enumerate(self.layers):
            hidden, keys, values = layer(hidden, positions, turned, mask, caches[2 * place], caches[2 * place + 1])
            made += [keys, values]
        last = normed(hidden[:, -1], self.norm, self.config["rms_norm_eps"])
        return self.head(last).argmax(dim=-1), made


def normed(values: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = values.to(torch.float32)
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(values.dtype) * weight


def rotated(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = values.chunk(2, dim=-1)
    return torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1)


def exported(config: dict[str, Any], shape: Shape) -> torch.export.ExportedProgram:
    """The step as an exported program in bfloat16, its weights without values."""
    with torch.device("meta"):
        model = Decoder(config).to(torch.bfloat16).eval()
        whole = torch.zeros(shape.requests, shape.tokens, dtype=torch.int64)
        cache = (shape.requests, shape.context, config["num_key_value_heads"], config["head_dim"])
        caches = [torch.zeros(cache, dtype=torch.bfloat16) for _ in range(2 * config["num_hidden_layers"])]
        with torch.no_grad():
            return torch.export.export(model, (whole, whole.clone(), caches))

"""Models that people export, whole: small, with random weights, lowered by `fxhlo.lower` and compared with eager torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxhlo

IDS = torch.tensor([[1, 5, 9, 2, 30, 7], [3, 3, 8, 0, 11, 4]])


class Recurrent(nn.Module):
    """An LSTM in both directions, then a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(12, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(self.lstm(x)[0])[0]


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(40, 6, mode="mean")

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.bag(ids))


def convolutions() -> tuple[nn.Module, tuple[Any, ...]]:
    layers = [
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4), nn.GroupNorm(2, 8),
        nn.Hardswish(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.ConvTranspose2d(8, 4, 2, stride=2), nn.AdaptiveAvgPool2d(3),
        nn.Flatten(), nn.Linear(36, 5), nn.LogSoftmax(-1),
    ]  # fmt: skip
    return nn.Sequential(*layers), (torch.randn(2, 3, 17, 13).to(memory_format=torch.channels_last),)


def encoder() -> tuple[nn.Module, tuple[Any, ...]]:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
    ), (torch.randn(2, 7, 16),)


def of_transformers(name: str, inputs: dict[str, torch.Tensor], **config: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    """A model of the library, from the model class's name; it takes the inputs by position, gives its first result."""
    import transformers

    kind = getattr(transformers, name)
    names = tuple(inputs)

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = kind(kind.config_class(**config))

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            return self.model(**dict(zip(names, values, strict=True)), return_dict=False)[0]

    return First(), tuple(inputs.values())


LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SIZES = {"vocab_size": 64, **LAYERS}
MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "convolutions": convolutions,
    "encoder": encoder,
    "recurrent": lambda: (Recurrent(), (torch.randn(2, 5, 5),)),
    "bags": lambda: (Bags(), (IDS,)),
    "gpt2": lambda: of_transformers("GPT2LMHeadModel", {"input_ids": IDS}, vocab_size=64, n_embd=32, n_layer=2, n_head=4, use_cache=False),
    "bert": lambda: of_transformers("BertModel", {"input_ids": IDS, "attention_mask": (IDS > 0).long()}, **SIZES),
    "qwen3": lambda: of_transformers("Qwen3ForCausalLM", {"input_ids": IDS}, **SIZES, num_key_value_heads=2, head_dim=8, use_cache=False),
    "mixtral": lambda: of_transformers("MixtralForCausalLM", {"input_ids": IDS}, **SIZES, num_key_value_heads=2, num_local_experts=4, use_cache=False),
    "vit": lambda: of_transformers("ViTModel", {"pixel_values": torch.randn(2, 3, 16, 16)}, image_size=16, patch_size=4, **LAYERS),
    "t5": lambda: of_transformers("T5EncoderModel", {"input_ids": IDS}, vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_what_eager_torch_does(name: str) -> None:
    torch.manual_seed(0)
    model, args = MODELS[name]()
    model.eval()
    with torch.no_grad():
        expected = model(*args)
    (actual,) = fxhlo.lower(model, args).compile()(*args)
    torch.testing.assert_close(torch.from_dlpack(actual), expected, rtol=1e-4, atol=1e-4)

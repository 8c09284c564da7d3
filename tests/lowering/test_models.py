"""Models that people export, whole: small, with random weights, lowered by `fxhlo.lower` and compared with eager torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_transformers
import torch
from differential import check
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


@pytest.mark.parametrize(
    "name",
    [*tiny_transformers.FAST, *(pytest.param(one, marks=pytest.mark.conformance) for one in tiny_transformers.LONG)],
)
def test_an_architecture_computes_what_eager_torch_does(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = tiny_transformers.build(name)
    check(model, *inputs, rtol=1e-4, atol=1e-4)


class Energy(nn.Module):
    """A potential and its forces: the gradient with respect to an input, taken inside of forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.layers(x).sum()
            (slope,) = torch.autograd.grad(energy, x, create_graph=True)
        return energy, -slope


class PerSample(nn.Module):
    """The gradients of the weights for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> Any:
        def loss(weights: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(self.layer, weights, (row,)).square().sum()

        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(dict(self.layer.named_parameters()), x)


@pytest.mark.parametrize(
    "function",
    [
        Energy(), PerSample(), torch.func.grad(lambda x: (x.sin() ** 2).sum()), lambda x: torch.func.vjp(torch.tanh, x)[1](x),
        lambda x: torch.func.jvp(torch.tanh, (x,), (x * 2,)), torch.func.jacrev(lambda x: x.sin() * x.sum()),
        torch.func.jacfwd(lambda x: x.sin() * x.sum()), torch.func.hessian(lambda x: (x**3).sum()),
        torch.vmap(lambda row: row * row.sum(), in_dims=1, out_dims=1),
    ],
    ids=["forces", "per_sample", "grad", "vjp", "jvp", "jacrev", "jacfwd", "hessian", "vmap"],
)  # fmt: skip
def test_derivatives_and_vmap_inside_of_forward(function: Callable[..., Any]) -> None:
    check(function, torch.randn(4, 3))


def test_derivatives_with_a_symbolic_batch() -> None:
    check(Energy(), torch.randn(4, 3), dynamic=({0: torch.export.Dim("batch", max=16)},))


def decoder() -> nn.Module:
    import transformers

    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, num_key_value_heads=2, head_dim=8, max_position_embeddings=32)
    ).eval()


def test_a_static_cache_is_kept_between_calls() -> None:
    """By transformers' own recipe, whose cache is an object beside the module."""
    from transformers import GenerationConfig
    from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

    model = decoder()
    model.generation_config = GenerationConfig(use_cache=True, cache_implementation="static")
    module = TorchExportableModuleWithStaticCache(model, batch_size=1, max_cache_len=8)
    run = fxhlo.lower(module, (), {"input_ids": IDS[:1, :1], "cache_position": torch.tensor([0])}).compile()
    with torch.no_grad():
        expected = decoder()(IDS[:1], use_cache=False).logits[0]
    for place, wanted in enumerate(expected):
        logits = torch.from_dlpack(run(IDS[:1, place : place + 1], torch.tensor([place]))[-1])
        torch.testing.assert_close(logits[0, 0], wanted, rtol=1e-4, atol=1e-4)


def test_a_dynamic_cache_goes_in_and_out() -> None:
    from transformers.integrations.executorch import register_dynamic_cache_export_support

    register_dynamic_cache_export_support()
    model = decoder()
    with torch.no_grad():
        past = model(IDS[:, :4], use_cache=True).past_key_values
        before = [leaf.clone() for leaf in torch.utils._pytree.tree_leaves(past)]
    hlo = fxhlo.lower(model, (), {"input_ids": IDS[:, 4:], "past_key_values": past})
    results = [torch.from_dlpack(one) for one in torch.utils._pytree.tree_leaves(hlo.compile()(IDS[:, 4:], *before))]
    with torch.no_grad():
        expected = torch.utils._pytree.tree_leaves(model(IDS, use_cache=True))
    assert len(results) == len(expected) == 5
    torch.testing.assert_close(results[0], expected[0][:, 4:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results[1:], expected[1:], rtol=1e-4, atol=1e-4)

"""Builds vLLM's own model class, with or without weights, and the function that a step captures.

Comes in: vLLM's config. Goes out: an `nn.Module` on the host. Guaranteed: without weights, parameters are on the meta
device (no memory, no file but config.json is read) and buffers, such as the rotary embedding's table, are real.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ...kernels.catalog import register_torch_ops
from ...passes.hlo.plan import ONE_DEVICE, Plan
from ..core.errors import UnsupportedError
from . import compat
from .causes import named_cause
from .fixed_fields import check_windows
from .host import without_accelerator
from .layers.catalog import replaced
from .loading import load_model
from .output_head import add_head, settle_tie, tie_as
from .positions import extend_rotary_tables
from .streaming import Stream

PER_LAYER = "per_layer_inputs"
"""The argument of a model's forward with embeddings for each of its layers."""
BUILT = "fxhlo_built"
"""Attribute of a model that `build_model` made: (its config, its attention layers by name)."""


def build_model(
    vllm_config: compat.VllmConfig,
    *,
    weights: bool,
    like: nn.Module | None = None,
    unread: Callable[[], Collection[str]] = tuple,
    stream: Stream | None = None,
) -> nn.Module:
    """Builds the config's model, in eval mode; several may be alive at once. Raises ModelError, UnsupportedError.

    like: the same model with weights; a model without weights gets the same parameters. unread: names of parameters that no step reads,
    which the files may lack; called where some are missing. stream: takes the weights as they are loaded; its `finish` leaves the model
    without them.
    """
    without_accelerator()
    compat.start_one_process(vllm_config)
    compat.forget_layers(vllm_config)
    with (
        compat.set_current_vllm_config(vllm_config),
        torch.no_grad(),
        named_cause(vllm_config),
        stream if stream is not None else nullcontext(),
    ):
        compat.look_at_models_here()  # an engine's process may not have made the config
        compat.get_model_architecture(vllm_config.model_config)  # imports the layers that it uses, which are replaced
        with replaced():
            model = load_model(vllm_config, unread, stream) if weights else _shapes_only(vllm_config, like)
        if like is not None:
            _add_parameters(model, like)
        _widen(model, vllm_config.model_config.dtype)
    extend_rotary_tables(model, vllm_config.model_config.max_model_len)
    layers = compat.layers_of(vllm_config)
    check_windows(layers, vllm_config.model_config)
    setattr(model, BUILT, (vllm_config, layers))
    return model.eval()


def layers_of(model: nn.Module) -> dict[str, Any]:
    """The layers of a model from `build_model` that keep something between steps, by name."""
    _, layers = getattr(model, BUILT)
    return layers


def weight_bytes(model: nn.Module, plan: Plan = ONE_DEVICE) -> int:
    """Bytes of the model's parameters on all devices of a plan; shared ones count once."""
    return sum(plan.bytes(name, one.shape, one.itemsize) for name, one in model.named_parameters())


def step_function(model: nn.Module) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Returns f(input_ids int32 [T], positions int32 [T], logit_rows int32 [R]) -> logits [R, V] of the model's dtype.

    model: from `build_model`. f runs eagerly (as one request that starts at position 0) and under fake tensors.
    """
    register_torch_ops()
    compute_logits: Any = model.compute_logits

    def step(input_ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor) -> torch.Tensor:
        with _forward_context(model):
            named = _embedded_for_layers(model, input_ids)
            hidden = model(
                input_ids=input_ids, positions=positions, intermediate_tensors=None, inputs_embeds=None, **named
            )
            return compute_logits(torch.ops.fxhlo.select_rows(hidden, logit_rows))

    return step


def _embedded_for_layers(model: nn.Module, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The embeddings that each layer gets of a token, [T, layers, size], where the model's forward takes them: vLLM's multimodal classes
    (Gemma 3n) pass them to the text model, and leave them out where it is served alone."""
    inner: Any = getattr(model, "model", None)
    embed = getattr(inner, "get_per_layer_input_embeddings", None)
    if embed is None or PER_LAYER not in inspect.signature(model.forward).parameters:
        return {}
    sizes = inner.config.num_hidden_layers, inner.config.hidden_size_per_layer_input
    return {PER_LAYER: embed(input_ids).reshape(-1, *sizes)}


def pooling_function(model: nn.Module) -> Callable[..., torch.Tensor]:
    """Returns f(input_ids int32 [T], positions int32 [T], token_type_ids int32 [T]?) -> hidden states [T, H] of the model's dtype.

    token_type_ids: where `takes_token_types`. What the pooler makes of the hidden states is not part of it.
    """
    register_torch_ops()

    def step(input_ids: torch.Tensor, positions: torch.Tensor, *token_types: torch.Tensor) -> torch.Tensor:
        with _forward_context(model):
            named = dict(zip(("token_type_ids",), token_types, strict=False))
            # vLLM's encoders write the token types into the ids' high bits
            hidden = model(
                input_ids=input_ids.clone(),
                positions=positions,
                intermediate_tensors=None,
                inputs_embeds=None,
                **named,
            )
        if not isinstance(hidden, torch.Tensor):
            raise UnsupportedError(
                f"{type(model).__name__} returns {type(hidden).__name__}, not hidden states",
                next_step="serve this model on another platform of vLLM",
            )
        return hidden

    return step


def takes_token_types(model: nn.Module) -> bool:
    """Whether the model is told of which of two texts a token is."""
    return "token_type_ids" in inspect.signature(model.forward).parameters


@contextmanager
def _forward_context(model: nn.Module) -> Iterator[None]:
    """What vLLM's model runner has around a model's forward, and our layers in place of vLLM's."""
    vllm_config, layers = getattr(model, BUILT)
    nothing: Any = None  # as vLLM's own profiling run passes it
    context = compat.ForwardContext(no_compile_layers=layers, attn_metadata=nothing, slot_mapping={})
    with (
        compat.set_current_vllm_config(vllm_config),
        compat.override_forward_context(context),
        compat.no_compile(),
        replaced(),
    ):
        yield


def _shapes_only(vllm_config: compat.VllmConfig, like: nn.Module | None) -> nn.Module:
    """Builds the model as vLLM's loader leaves it, with parameters on the meta device.

    Only values show whether a head that is stored beside tied embeddings differs from them: `like` has compared them.
    """
    model_config = vllm_config.model_config
    assert isinstance(model_config.dtype, torch.dtype)
    with compat.set_default_torch_dtype(model_config.dtype), _meta_parameters():
        model = compat.initialize_model(vllm_config=vllm_config, model_config=model_config)
        settle_tie(model, model_config.hf_text_config)
        if like is not None:
            add_head(model, like)
        with compat.no_comparison_of_heads(model_config):
            compat.process_weights_after_loading(model, model_config, torch.device("cpu"))
    if like is not None:
        tie_as(model, like)
    return model


def _add_parameters(model: nn.Module, like: nn.Module) -> None:
    """Registers the parameters that vLLM's loader adds when it finds them in the files, such as a head's bias.

    A module that the loader made is a pooler's, which is no part of a step.
    """
    have, modules = {name for name, _ in model.named_parameters()}, dict(model.named_modules(remove_duplicate=False))
    for name, parameter in like.named_parameters():
        path, _, last = name.rpartition(".")
        if name not in have and path in modules:
            added = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
            model.get_submodule(path).register_parameter(last, added)


def _widen(model: nn.Module, dtype: object) -> None:
    """Makes a model of float32 float32 throughout: some of vLLM's layers fix bfloat16 for a parameter, and then compute in that."""
    if dtype is torch.float32:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dtype in (torch.bfloat16, torch.float16):
                tensor.data = tensor.data.float()


@contextmanager
def _meta_parameters() -> Iterator[None]:
    """Makes every `nn.Parameter`, and vLLM's subclasses, on the meta device while it is entered.

    `torch.device("meta")` would put buffers there too; replacing parameters after registration, as accelerate does, loses the
    identity on which tied weights, and attributes that are set on parameters later, rely.
    """
    original = nn.Parameter.__new__

    def make(cls: type, data: torch.Tensor | None = None, requires_grad: bool = True, **others: object) -> nn.Parameter:
        data = torch.empty(0) if data is None else data
        return original(cls, data.detach().to("meta"), requires_grad, **others)

    nn.Parameter.__new__ = make  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Parameter.__new__ = original  # type: ignore[method-assign]

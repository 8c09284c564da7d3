"""vLLM's experts as one functional op, `fxhlo.moe`, and the routers' top-k in plain torch.

vLLM's MoERunner stays in charge: gates, shared experts, transforms, scaling and most routers are torch already. What has kernels
of its own is replaced: the experts' matmuls, the two ops through which a runner calls itself, and the top-k of three routers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch

from ....kernels.moe.reference import GATED, PLAIN
from ...core.errors import UnsupportedError
from ..compat import expert_layers
from ..folder import EXPERT, ModelError
from .kind import LayerKind, Replacement, by_linear_layers, replaced_in

if TYPE_CHECKING:
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

LAYERS = "vllm.model_executor.layers.fused_moe"
ROUTER, RUNNER = f"{LAYERS}.router", f"{LAYERS}.runner.moe_runner"
METHOD, CLASS = f"{LAYERS}.unquantized_fused_moe_method", "UnquantizedFusedMoEMethod"
TRANSFORMERS = "vllm.model_executor.models.transformers.moe"
BIAS = "e_score_correction_bias"
OPENAI = {"limit": 7.0, "alpha": 1.702, "beta": 1.0}
"""What vLLM's kernels for "swigluoai" have fixed."""


def replacements() -> Iterator[Replacement]:
    """None where the model has no experts: then its module has not imported vLLM's."""
    for module in (f"{ROUTER}.fused_topk_router", f"{ROUTER}.fused_topk_bias_router"):
        plain = module.endswith("topk_router")
        softmax, sigmoid = (topk_softmax, topk_sigmoid) if plain else (biased_topk_softmax, biased_topk_sigmoid)
        yield from replaced_in(module, {"vllm_topk_softmax": softmax, "vllm_topk_sigmoid": sigmoid})
    yield from replaced_in(f"{ROUTER}.fused_topk_bias_router", {"vllm_topk_softplus_sqrt": topk_softplus_sqrt})
    yield from replaced_in(f"{ROUTER}.zero_expert_router", {"ZeroExpertRouter._compute_routing": zero_experts})
    yield from replaced_in(RUNNER, {"MoERunner._select_forward": select_forward})
    yield from replaced_in(RUNNER, {"MoERunner.load_weights": load_weights})
    yield from replaced_in(TRANSFORMERS, {"TransformersMoERunner.forward": forward_with_choice})
    yield from replaced_in(METHOD, {f"{CLASS}.apply": apply, f"{CLASS}.get_fused_moe_quant_config": no_quant_config})
    if METHOD in sys.modules:
        yield Replacement(getattr(sys.modules[METHOD], CLASS), "is_monolithic", False)
    yield from one_projection_allowed()


def one_projection_allowed() -> Iterator[Replacement]:
    """vLLM's config of a mixture ends by refusing activations of one projection (Nemotron-H) on platforms other than its own."""
    module = sys.modules.get(f"{LAYERS}.config")
    if module is None or hasattr(module.FusedMoEConfig.__post_init__, "__wrapped__"):
        return  # not needed, or replaced already
    original = module.FusedMoEConfig.__post_init__

    @wraps(original)
    def made(self: Any) -> None:
        try:
            original(self)
        except NotImplementedError:
            if self.is_act_and_mul:
                raise

    yield Replacement(module.FusedMoEConfig, "__post_init__", made)


# -- the experts -------------------------------------------------------------------------------------------------------


def apply(
    self: object,
    layer: RoutedExperts,
    x: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    shared_experts: object,
    shared_experts_input: torch.Tensor | None,
) -> torch.Tensor:
    """x [T, H], topk_weights and topk_ids [T, k] -> [T, H]. The runner has computed the shared experts already."""
    activation, fixed = activation_of(layer)
    result: torch.Tensor = torch.ops.fxhlo.moe(
        x,
        layer.w13_weight,
        layer.w2_weight,
        topk_weights.to(torch.float32),
        topk_ids.to(torch.int32),
        getattr(layer, "w13_bias", None),
        getattr(layer, "w2_bias", None),
        activation=activation,
        **fixed,
        weight_on_input=bool(layer.apply_router_weight_on_input),
    )
    return result


def activation_of(layer: RoutedExperts) -> tuple[str, dict[str, float]]:
    """The op's name for the layer's activation, and its limit, alpha and beta. Raises UnsupportedError for one that it lacks."""
    name, config = layer.activation.value, layer.moe_config
    limit, alpha, beta = layer.swiglu_limit, layer.swiglu_alpha, layer.swiglu_beta
    fixed = {"limit": limit or 0.0, "alpha": 1.0, "beta": 0.0}
    if name == "swigluoai":
        given = {"limit": limit, "alpha": alpha, "beta": beta}
        fixed = {key: OPENAI[key] if value is None else value for key, value in given.items()}
    elif name == "swigluoai_uninterleave":  # silu's arrangement, with all three numbers
        name, fixed = "silu", {"limit": limit or 0.0, "alpha": 1.0 if alpha is None else alpha, "beta": beta or 0.0}
    elif name == "swiglustep":
        fixed["limit"] = OPENAI["limit"]  # vLLM's kernel has it fixed
    elif name == "situ":
        fixed |= {"alpha": config.activation_situ_beta or 0.0, "beta": config.activation_situ_linear_beta or 0.0}
    if name not in GATED and name not in PLAIN:
        raise _unsupported(layer.layer_name, f"experts with the activation {layer.activation.value}")
    if limit and name not in ("silu", "swigluoai", "swiglustep"):
        raise _unsupported(layer.layer_name, f"experts with the activation {name} and a limit of {limit}")
    return name, {key: float(value) for key, value in fixed.items()}


def no_quant_config(self: object, layer: RoutedExperts) -> None:
    """vLLM's kernels read it, which do not run."""


def select_forward(self: MoERunner) -> Callable[..., Any]:
    """The function through which a runner calls itself, which vLLM wraps in an op that changes its operand. Called when the layer
    is built, so that what is not supported ends a start before weights are loaded."""
    refuse(self)
    runner = expert_layers().moe_runner
    forward: Callable[..., Any] = runner._moe_forward if self._shared_experts is None else runner._moe_forward_shared
    return forward


def load_weights(self: MoERunner, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[str]:
    """`MoERunner.load_weights`, which drops a router's bias that the checkpoint has among the experts (Laguna). Yields names of parameters."""
    bias = dict(self.routed_experts.named_parameters()).get(BIAS)
    kept: list[str] = []

    def others() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            if name == BIAS and bias is not None:
                bias.data.copy_(tensor)
                kept.append(name)
            else:
                yield name, tensor

    for name in (*self.routed_experts.load_weights(others()), *kept):
        yield f"routed_experts.{name}"


def refuse(runner: MoERunner) -> None:
    """Raises UnsupportedError for what the op does not compute, ModelError for numbers that cannot be."""
    vllm, experts, router = expert_layers(), runner.routed_experts, runner.router
    activation_of(experts)
    count, top = experts.global_num_experts, experts.top_k
    if not 0 < top <= count:
        raise ModelError(
            f"a row cannot choose {top} of {count} experts",
            where=runner.layer_name,
            next_step="correct the numbers of experts, and of experts per token, in config.json",
        )
    _check_groups(runner, count, getattr(router, "num_expert_group", None), getattr(router, "topk_group", None))
    refused = {
        f"experts by {type(experts.quant_method).__name__}": type(experts.quant_method)
        is not vllm.UnquantizedFusedMoEMethod,
        "experts that are spread over processes": experts.expert_map is not None,
        "expert parallel load balancing": router.eplb_state is not None,
        "simulated routing (VLLM_MOE_ROUTING_SIMULATION_STRATEGY)": isinstance(router, vllm.RoutingSimulatorRouter),
        "a gate of shared experts without shared experts": runner._fse_fuse_gate,
    }
    for what, asked in refused.items():
        if asked:
            raise _unsupported(runner.layer_name, what)


def _check_groups(runner: MoERunner, count: int, groups: int | None, chosen: int | None) -> None:
    """Raises ModelError for groups that the experts do not make: vLLM would route without groups, or end while it routes."""
    if not groups:
        return
    wrong = f"{count} experts do not make {groups} groups of equal size" if count % groups else None
    if wrong is None and not 0 < (chosen or 0) <= groups:
        wrong = f"a row cannot choose {chosen} of {groups} groups of experts"
    if wrong:
        raise ModelError(
            wrong,
            where=runner.layer_name,
            next_step="correct n_group, topk_group and the number of experts in config.json",
        )


def _unsupported(layer: str, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{layer}: fxhlo does not support {what} yet",
        next_step="serve this model on another platform of vLLM",
    )


def forward_with_choice(
    self: Any, hidden_states: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, **kwargs: object
) -> torch.Tensor:
    """`TransformersMoERunner.forward` without the op: the choice of transformers' own router reaches the runner by its state."""
    self._moe_state.topk_ids = topk_ids.to(torch.int32)
    result: torch.Tensor = self._forward_super(hidden_states, topk_weights.to(torch.float32))
    return result


# -- the routers -------------------------------------------------------------------------------------------------------


def topk_softmax(
    topk_weights: torch.Tensor,
    topk_indices: torch.Tensor,
    token_expert_indices: torch.Tensor,
    gating_output: torch.Tensor,
    renormalize: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """vLLM's op. Its first three operands are buffers for results, of which only the shape and the dtype are read."""
    return _topk(torch.softmax(gating_output.float(), -1), topk_indices, renormalize)


def topk_sigmoid(
    topk_weights: torch.Tensor,
    topk_indices: torch.Tensor,
    token_expert_indices: torch.Tensor,
    gating_output: torch.Tensor,
    renormalize: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """vLLM's op; buffers as in `topk_softmax`, and so in those below."""
    return _topk(torch.sigmoid(gating_output.float()), topk_indices, renormalize)


def biased_topk_softmax(
    topk_weights: torch.Tensor,
    topk_indices: torch.Tensor,
    token_expert_indices: torch.Tensor,
    gating_output: torch.Tensor,
    renormalize: bool = False,
    e_score_correction_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _topk(torch.softmax(gating_output.float(), -1), topk_indices, renormalize, e_score_correction_bias)


def biased_topk_sigmoid(
    topk_weights: torch.Tensor,
    topk_indices: torch.Tensor,
    token_expert_indices: torch.Tensor,
    gating_output: torch.Tensor,
    renormalize: bool = False,
    e_score_correction_bias: torch.Tensor | None = None,
    routed_scaling_factor: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.sigmoid(gating_output.float())
    return _topk(scores, topk_indices, renormalize, e_score_correction_bias, routed_scaling_factor)


def topk_softplus_sqrt(
    topk_weights: torch.Tensor,
    topk_indices: torch.Tensor,
    token_expert_indices: torch.Tensor,
    gating_output: torch.Tensor,
    renormalize: bool = False,
    e_score_correction_bias: torch.Tensor | None = None,
    input_tokens: torch.Tensor | None = None,
    hash_indices_table: torch.Tensor | None = None,
    routed_scaling_factor: float = 1.0,
    bias_vl: torch.Tensor | None = None,
    image_sentinel_lo: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """hash_indices_table [vocabulary, k]: the experts of each token id, instead of the best; input_tokens [T].

    Raises UnsupportedError for the bias of images.
    """
    if bias_vl is not None and image_sentinel_lo > 0:
        raise UnsupportedError("fxhlo does not support routing by images yet", next_step="serve a text model")
    scores = torch.nn.functional.softplus(gating_output.float()).sqrt()
    if hash_indices_table is None:
        return _topk(scores, topk_indices, renormalize, e_score_correction_bias, routed_scaling_factor)
    assert input_tokens is not None
    chosen = torch.nn.functional.embedding(input_tokens, hash_indices_table)
    return _weighted(scores, chosen, topk_indices.dtype, renormalize, routed_scaling_factor)


def _topk(
    scores: torch.Tensor, like: torch.Tensor, renormalize: bool, bias: torch.Tensor | None = None, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """scores [T, E], bias [E] -> (weights float32 [T, k], ids [T, k] of like's dtype): the best by score and bias, weighted by score."""
    best = scores if bias is None else scores + bias
    return _weighted(scores, torch.topk(best, like.shape[1], dim=-1).indices, like.dtype, renormalize, scale)


def _weighted(
    scores: torch.Tensor, chosen: torch.Tensor, dtype: torch.dtype, renormalize: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = scores.gather(-1, chosen.to(torch.int64))
    if renormalize:
        total = weights.sum(-1, keepdim=True)
        weights = weights / torch.where(total > 0, total, 1.0)
    return (weights * scale if scale != 1.0 else weights), chosen.to(dtype)


def zero_experts(
    self: Any,
    hidden_states: torch.Tensor,
    router_logits: torch.Tensor,
    indices_type: torch.dtype | None,
    *,
    input_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`ZeroExpertRouter._compute_routing`: an expert past the real ones gives its row back. The runner adds what those give; their ids
    are outside the range of the experts, and `fxhlo.moe` skips them."""
    if self.zero_expert_type != "identity":
        raise UnsupportedError(f"fxhlo does not support zero experts of type {self.zero_expert_type} yet")
    weights, ids = expert_layers().fused_topk_bias_router.fused_topk_bias(
        hidden_states=hidden_states,
        gating_output=router_logits,
        e_score_correction_bias=self.e_score_correction_bias,
        topk=self.top_k,
        renormalize=self.renormalize,
        scoring_func=self.scoring_func,
        indices_type=indices_type,
    )
    if self.routed_scaling_factor != 1.0:
        weights = weights * self.routed_scaling_factor
    of_rows = torch.where(ids >= self.num_logical_experts, weights, 0.0).sum(-1, keepdim=True)
    self._zero_expert_output = (hidden_states * of_rows).to(hidden_states.dtype)
    return weights, ids


def is_experts(layer: object) -> bool:
    """Whether the layer is a mixture of experts, which vLLM registers like layers with a state although it has none."""
    runner = sys.modules.get(RUNNER)
    return runner is not None and isinstance(layer, runner.MoERunner)


@contextmanager
def under_former_names(model: torch.nn.Module) -> Iterator[None]:
    """While it is entered, weights of experts whose class loads them itself (DBRX) have the names of before too, without the last level of
    their path: such a class looks for those alone."""
    added: list[tuple[torch.nn.Module, str]] = []
    usual = expert_layers().RoutedExperts if f"{LAYERS}.routed_experts" in sys.modules else ()
    for path, module in model.named_modules():
        if isinstance(module, usual) and type(module).weight_loader is not usual.weight_loader:  # type: ignore[union-attr]
            above = model.get_submodule(path.rpartition(".")[0])
            added += [(above, name) for name, _ in module.named_parameters(recurse=False) if not hasattr(above, name)]
            for name in (name for owner, name in added if owner is above):
                above.register_parameter(name, module.get_parameter(name))
    try:
        yield
    finally:
        for owner, name in added:
            delattr(owner, name)


def tensors_of(layer: Any, parameter: str, missing: torch.Tensor) -> list[str]:
    """A checkpoint's names for the missing elements of w13_weight, w2_weight or their biases, where it has a tensor per expert; [] for
    a layer of another kind.

    missing: bool, of the parameter's shape, the experts first.
    """
    if not isinstance(layer, expert_layers().RoutedExperts):
        return []
    part, _, kind = parameter.partition("_")
    down, gate, up = layer.ckpt_down_proj_name, layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name
    names = {"w13": [gate] if up is None else [gate, up], "w2": [down]}.get(part)
    if names is None:
        return []
    return [
        f"{layer.layer_name}.{number}.{name}.{kind}"
        for number, one in enumerate(missing)
        for name, rows in zip(names, one.chunk(len(names)), strict=True)
        if bool(rows.any())
    ]


def expected_shape(model: torch.nn.Module, name: str) -> tuple[int, ...] | None:
    """The shape that a checkpoint's weight of one expert must have; None for a tensor of another kind."""
    match = EXPERT.match(name)
    if match is None or match.group(2) is None or not name.endswith(".weight"):
        return None
    projection = name.removesuffix(".weight").rpartition(".")[2]
    for layer in model.modules():
        if isinstance(layer, expert_layers().RoutedExperts) and layer.layer_name == match.group(1):
            w13, w2 = layer.w13_weight.shape, layer.w2_weight.shape
            if projection == layer.ckpt_down_proj_name:
                return tuple(w2[1:])
            if projection in (layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name):
                return (w13[1] // (1 if layer.ckpt_up_proj_name is None else 2), w13[2])
    return None


def states(name: str, layer: object, block_size: int) -> tuple[()]:
    return ()


KIND = LayerKind("experts", is_experts, states, replacements, splits=by_linear_layers)

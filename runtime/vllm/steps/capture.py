"""From a vLLM model to the Program of one engine step.

The step: token ids and positions of all requests' tokens in, one sampled token per request out, the KV caches updated
in place. Captured once; every bucket is emitted from the same Program.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from ....lowering.capture.callable import Input, capture_callable
from ....passes.base import Pass
from ....passes.program import Program
from ....passes.step_inputs import HIDDEN, MODEL, TOKEN_TYPES, TOKENS, StepInput
from .options import StepOptions
from .passes import step_passes

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from ...core.targets import Target


LAYERS_OF = ("vllm.model_executor", "fxhlo.runtime", "torch.nn")
"""Packages whose repeated layers are copied: tests/vllm/test_copied_layers.py compares vLLM's with the whole trace. Others, such as out-of-tree
models and those of the Transformers backend, are traced whole."""

LEAST = 3
"""The least upper end of a size's range: where a model's Python or torch asks whether it is 1, a size of 1 to 2 would be the number 2 from there on."""


def capture_step(config: VllmConfig, model: torch.nn.Module) -> Program:
    """Captures vLLM's model and its logits, or its hidden states where it pools; attention is still without a cache and
    nothing is sampled.

    Raises UnsupportedError where a table of positions is shorter than max_model_len, or tokens are mixed outside of attention.
    """
    from ..mixing import check_tokens_apart
    from ..model import pooling_function, step_function, takes_token_types
    from ..positions import check_tables

    options = StepOptions.of(config)
    ranges = {"tokens": (1, max(options.max_tokens, options.max_model_len, LEAST))}
    name = type(model).__name__
    if options.pooling:
        table = (*TOKENS, *TOKEN_TYPES) if takes_token_types(model) else TOKENS
        pooled = pooling_function(model)
        program = capture_callable(
            pooled, model, _inputs(table), ranges, results=(HIDDEN,), name=name, copied=LAYERS_OF
        )
    else:
        ranges["requests"] = (1, max(options.max_requests, LEAST))
        step = step_function(model)
        program = capture_callable(
            step, model, _inputs(MODEL), ranges, results=("logits",), name=name, copied=LAYERS_OF
        )
    check_tables(program, options.max_model_len)
    check_tokens_apart(program)
    return program


def unread_parameters(config: VllmConfig) -> set[str]:
    """Names of the model's parameters that no step reads: a class may declare a norm for all layers and use it in some."""
    from ..compat import without_layers
    from ..model import build_model

    other = without_layers(config)
    model = build_model(other, weights=False)
    program = capture_step(other, model)
    pairs = zip(program.placeholders, program.arguments, strict=True)
    used = {argument.name for node, argument in pairs if node.users}
    named = dict(model.named_parameters(remove_duplicate=False))
    read = {id(one) for name, one in named.items() if name in used}
    return {name for name, one in named.items() if id(one) not in read}


def _inputs(table: Iterable[StepInput]) -> list[Input]:
    return [Input(one.name, one.shape, getattr(torch, one.dtype)) for one in table]


def capture_model(
    model: str, *, dtype: str = "auto", max_model_len: int | None = None, max_num_seqs: int = 32
) -> tuple[Program, tuple[Pass, ...]]:
    """The step of a model folder (its config.json is enough) as vLLM would serve it, and the passes that belong to it.

    dtype: "auto", "bfloat16", "float16" or "float32". No weight is read. Raises FxhloError, or what vLLM says of a bad config.
    """
    from ..compat import engine_config
    from ..model import build_model

    config = engine_config(model, dtype=dtype, max_model_len=max_model_len, max_num_seqs=max_num_seqs)
    model_class = build_model(config, weights=False)
    program = capture_step(config, model_class)
    return program, step_passes(options_of(config, model_class))


def options_of(config: VllmConfig, model: torch.nn.Module, target: Target | None = None) -> StepOptions:
    """The options of the engine that would serve this model, on this target where one is given. model: from `build_model`."""
    from ..compat import cache_groups
    from ..layers.catalog import states
    from ..model import layers_of
    from ..states.groups import groups_of, specs_for_vllm

    specs = specs_for_vllm(states(layers_of(model), config.cache_config.block_size))
    groups = groups_of(cache_groups(config, specs), config.model_config.max_model_len)
    return StepOptions.of(config, groups) if target is None else StepOptions.of_engine(config, groups, target)

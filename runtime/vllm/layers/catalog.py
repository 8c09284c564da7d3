"""The kinds of layers that the engine can serve, the states of a model's layers, and what stands in for vLLM's layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

from ...core.errors import UnsupportedError
from .. import compat
from ..states.spec import StateSpec
from . import (
    attention,
    called_kernels,
    experts,
    gated_delta_net,
    latent_attention,
    linear_attention,
    mamba,
    short_conv,
    sparse_attention,
)
from .kind import LayerKind

if TYPE_CHECKING:
    from vllm.config import VllmConfig

KINDS = (
    latent_attention.KIND,
    sparse_attention.KIND,
    attention.KIND,
    mamba.KIND,
    short_conv.KIND,
    gated_delta_net.KIND,
    linear_attention.KIND,
    experts.KIND,
    called_kernels.KIND,
)
"""The first that claims a layer has it."""


def states(layers: Mapping[str, object], block_size: int) -> tuple[StateSpec, ...]:
    """The states of all layers, in the model's order. layers: by name, as vLLM registers those with a state.

    Raises UnsupportedError for a layer of another kind.
    """
    return tuple(
        state for name, layer in layers.items() for state in kind_of(name, layer).states(name, layer, block_size)
    )


def kind_of(name: str, layer: object) -> LayerKind:
    """The kind of a layer. Raises UnsupportedError where it has none."""
    for kind in KINDS:
        if kind.is_one(layer):
            return kind
    raise UnsupportedError(
        f"fxhlo does not support the state of {type(layer).__name__} ({name}) yet",
        next_step="serve this model on another platform of vLLM",
    )


def slot_dtypes(vllm_config: VllmConfig) -> tuple[tuple[str, str], ...]:
    """The name and dtype of each state that has a row per request, of the model that was built last with this config."""
    found = states(compat.layers_of(vllm_config), vllm_config.cache_config.block_size)
    return tuple((state.name, state.dtype) for state in found if state.rows == "slots")


@contextmanager
def replaced() -> Iterator[None]:
    """While it is entered, vLLM's layers are the ones of `KINDS`; a model is built and captured within. Reentrant."""
    with ExitStack() as stack:
        for kind in KINDS:
            for one in kind.replacements():
                stack.enter_context(patch.object(one.owner, one.name, one.value))
        yield

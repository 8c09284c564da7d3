"""The kinds of layers that the engine can serve, and the states of a model's layers."""

from __future__ import annotations

from collections.abc import Mapping

from ...core.errors import UnsupportedError
from ..states.spec import StateSpec
from . import attention

KINDS = (attention.KIND,)


def states(layers: Mapping[str, object], block_size: int) -> tuple[StateSpec, ...]:
    """The state of each layer, in the model's order. layers: by name, as vLLM registers those with a state.

    Raises UnsupportedError for a layer of another kind.
    """
    return tuple(_state(name, layer, block_size) for name, layer in layers.items())


def _state(name: str, layer: object, block_size: int) -> StateSpec:
    for kind in KINDS:
        if kind.is_one(layer):
            return kind.state(name, layer, block_size)
    raise UnsupportedError(
        f"fxhlo does not support the state of {type(layer).__name__} ({name}) yet",
        next_step="serve this model on another platform of vLLM",
    )

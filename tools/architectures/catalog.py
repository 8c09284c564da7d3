"""Every architecture that is compared, by name, and its kind."""

from __future__ import annotations

from collections.abc import Iterable

from .backend import BACKEND
from .dense import DENSE
from .drawn import draw
from .experts import MIXTURES
from .latent import LATENT
from .small import Architecture
from .state_space import HYBRIDS, STATE_SPACE

KINDS: dict[str, tuple[Architecture, ...]] = {
    "dense": DENSE,
    "mixture of experts": MIXTURES,
    "latent attention": LATENT,
    "state space": STATE_SPACE,
    "hybrid": HYBRIDS,
    "Transformers backend": BACKEND,
}
ARCHITECTURES = {one.name: one for group in KINDS.values() for one in group}


DRAWN = "@"
"""Between a name and a seed: `LlamaForCausalLM@7` is a random model of that family (drawn.py)."""


def architecture_of(name: str) -> Architecture:
    """The row of the tables with this name, or the model that is drawn for NAME@SEED."""
    family, drawn, seed = name.partition(DRAWN)
    return draw(family, int(seed)) if drawn else ARCHITECTURES[name]


def kind_of(name: str) -> str:
    family = name.partition(DRAWN)[0]
    return next(kind for kind, group in KINDS.items() if any(one.name == family for one in group))


def drawn_names(families: Iterable[str], seeds: Iterable[int]) -> list[str]:
    """Names of random models: for each seed one of each family."""
    families = tuple(families)
    return [f"{family}{DRAWN}{seed}" for seed in seeds for family in families]

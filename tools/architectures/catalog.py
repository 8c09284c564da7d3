"""Every architecture that is compared, by name, and its kind."""

from __future__ import annotations

from .backend import BACKEND
from .dense import DENSE
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


def kind_of(name: str) -> str:
    return next(kind for kind, group in KINDS.items() if any(one.name == name for one in group))

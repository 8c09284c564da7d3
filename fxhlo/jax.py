"""fxhlo's composites for JAX functions, and the way from such a function to a bundle.

    import fxhlo.jax

    output, cache = fxhlo.jax.ragged_paged_attention(query, key, value, cache, ..., scale=1.0, sliding_window=0, soft_cap=0.0)
    hlo = fxhlo.jax.lower(step, params, caches, token_ids, weights=("params",), states=("caches",))
    hlo.save("bundle")                                       # runs where a torch model's does

Each kernel of docs/kernels.md is a function here, under its name, with the parameters of its schema. `lower` is
lowering/jax/lower.py; docs/jax.md shows a decoder. Everything is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lowering.jax.lower import lower_jax as lower  # noqa: F401


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    if name == "lower":
        from .lowering.jax.lower import lower_jax

        return lower_jax
    from .kernels.catalog import kernels

    if f"fxhlo.{name}" not in kernels():
        raise AttributeError(f"fxhlo.jax has no {name!r}; its kernels: {', '.join(__dir__()[1:])}")
    from .lowering.jax.composites import composite

    return composite(name)


def __dir__() -> list[str]:
    from .kernels.catalog import kernels

    return ["lower", *(name.removeprefix("fxhlo.") for name in kernels())]

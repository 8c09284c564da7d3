"""`fxhlo.grouped_matmul`: rows sorted by group, each times its group's weight: the products of a layer of experts."""

from ..spec import FLOATING, Implementation, Kernel
from . import tpu
from .cases import cases
from .reference import fake, grouped_matmul


def _lower(*operands, **named):
    from .xla import grouped_matmul as lower  # jax only where it is wanted

    return lower(*operands, **named)


KERNEL = Kernel(
    name="grouped_matmul",
    version=1,
    schema="grouped_matmul(Tensor values, Tensor weights, Tensor sizes) -> Tensor",
    reference=grouped_matmul,
    fake=fake,
    dtypes={"values": FLOATING, "weights": FLOATING, "sizes": ("int32",)},
    implementations=(
        Implementation("tpu", "ragged_dot", tpu.grouped_matmul, tpu.supports),
        Implementation("any", "xla", _lower),
    ),
    cases=cases,
    source="Gale et al., MegaBlocks, 2022; jax.lax.ragged_dot",
)

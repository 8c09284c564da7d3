"""`fxhlo.grouped_matmul`: multiplies rows sorted by group by their group's weight: the matmuls of a mixture-of-experts layer."""

from ..spec import FLOATING, Implementation, Kernel
from .cases import cases
from .reference import fake, grouped_matmul

KERNEL = Kernel(
    name="grouped_matmul",
    version=1,
    schema="grouped_matmul(Tensor values, Tensor weights, Tensor sizes) -> Tensor",
    reference=grouped_matmul,
    fake=fake,
    dtypes={"values": FLOATING, "weights": FLOATING, "sizes": ("int32",)},
    implementations=(
        Implementation.in_folder(__name__, "tpu", "pallas", row_major=("weights",)),
        Implementation.in_folder(__name__, "cuda", "triton"),
        Implementation.in_folder(__name__, "any", "xla"),
    ),
    cases=cases,
    source="Gale et al., MegaBlocks, 2022; jax.lax.ragged_dot",
)

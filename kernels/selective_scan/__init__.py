"""`fxhlo.selective_scan`: Mamba's selective state space along one sequence.

Represents a captured layer until a pass gives it a state (`fxhlo.ragged_selective_scan`).
"""

from ..spec import FLOATING, Implementation, Kernel
from .reference import fake, selective_scan

KERNEL = Kernel(
    name="selective_scan",
    version=1,
    schema="selective_scan(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor d, Tensor? dt_bias, *, str layer) -> Tensor",
    reference=selective_scan,
    fake=fake,
    dtypes=dict.fromkeys(("x", "dt", "a", "b", "c", "d", "dt_bias"), FLOATING),
    implementations=(Implementation.in_folder(__name__, "any", "xla"),),
    source="Gu and Dao, Mamba: linear-time sequence modeling with selective state spaces, 2023, algorithm 2",
)

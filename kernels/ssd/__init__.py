"""`fxhlo.ssd`: Mamba 2's state space (structured state space duality) along one sequence.

Represents a captured layer until a pass gives it a state (`fxhlo.ragged_ssd`).
"""

from ..spec import FLOATING, Implementation, Kernel
from .reference import fake, ssd

KERNEL = Kernel(
    name="ssd",
    version=1,
    schema="ssd(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor d, Tensor dt_bias, *, str layer) -> Tensor",
    reference=ssd,
    fake=fake,
    dtypes=dict.fromkeys(("x", "dt", "a", "b", "c", "d", "dt_bias"), FLOATING),
    implementations=(Implementation.in_folder(__name__, "any", "xla"),),
    source="Dao and Gu, Transformers are SSMs, 2024, sections 3 and 6",
)

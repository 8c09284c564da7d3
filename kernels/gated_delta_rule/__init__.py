"""`fxhlo.gated_delta_rule`: gated delta attention (Gated DeltaNet, Kimi Delta Attention) of one sequence.

Represents a captured layer until a pass gives it a state (`fxhlo.ragged_gated_delta_rule`).
"""

from ..spec import FLOATING, Implementation, Kernel
from .reference import fake, gated_delta_rule

KERNEL = Kernel(
    name="gated_delta_rule",
    version=1,
    schema="gated_delta_rule(Tensor q, Tensor k, Tensor v, Tensor g, Tensor beta, *, str layer, float scale, bool l2norm) -> Tensor",
    reference=gated_delta_rule,
    fake=fake,
    dtypes=dict.fromkeys(("q", "k", "v", "g", "beta"), FLOATING),
    implementations=(Implementation.in_folder(__name__, "any", "xla"),),
    source="Yang et al., Gated delta networks, 2024, section 3; Kimi Linear, 2025, section 3",
)

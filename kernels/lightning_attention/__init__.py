"""`fxhlo.lightning_attention`: linear attention with a fixed decay a head, of one sequence.

Represents a captured layer until a pass gives it a state (`fxhlo.ragged_lightning_attention`).
"""

from ..spec import FLOATING, Implementation, Kernel
from .reference import fake, lightning_attention

KERNEL = Kernel(
    name="lightning_attention",
    version=1,
    schema="lightning_attention(Tensor q, Tensor k, Tensor v, Tensor slopes, *, str layer) -> Tensor",
    reference=lightning_attention,
    fake=fake,
    dtypes=dict.fromkeys(("q", "k", "v", "slopes"), FLOATING),
    implementations=(Implementation.in_folder(__name__, "any", "xla"),),
    source="Qin et al., Lightning attention-2, 2024; vllm/model_executor/layers/lightning_attn.py of vLLM 0.32.0",
)

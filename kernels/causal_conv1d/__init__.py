"""`fxhlo.causal_conv1d`: a short depthwise convolution along one sequence.

Represents a captured layer until a pass gives it a state (`fxhlo.ragged_causal_conv1d`).
"""

from ..spec import FLOATING, Kernel
from .reference import causal_conv1d, fake

KERNEL = Kernel(
    name="causal_conv1d",
    version=1,
    schema="causal_conv1d(Tensor values, Tensor weight, Tensor? bias, *, str layer, bool silu) -> Tensor",
    reference=causal_conv1d,
    fake=fake,
    dtypes=dict.fromkeys(("values", "weight", "bias"), FLOATING),
    source="vllm/model_executor/layers/mamba/ops/causal_conv1d.py of vLLM 0.32.0; Gu and Dao, Mamba, 2023, section 3.4",
)

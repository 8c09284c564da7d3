"""`fxhlo.rms_norm`: root-mean-square normalization of the last dimension (https://arxiv.org/abs/1910.07467).

vLLM's IR op of this name without the residual addition. One kernel sums a row in the same order in every program.
"""

from ..spec import FLOATING, Implementation, Kernel
from .partition import partition
from .reference import fake, rms_norm

KERNEL = Kernel(
    name="rms_norm",
    version=1,
    schema="rms_norm(Tensor values, Tensor weight, float epsilon) -> Tensor",
    partition=partition,
    reference=rms_norm,
    fake=fake,
    dtypes={"values": FLOATING, "weight": FLOATING},
    implementations=(Implementation.in_folder(__name__, "cpu", "native", uniform=True),),
    source="vllm/ir/ops/layernorm.py rms_norm",
)

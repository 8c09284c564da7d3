"""`fxhlo.silu_and_mul`: the gated activation of an MLP, silu(gate) * up over the two halves of a row.

XLA's CPU backend expands a bfloat16 logistic into so many conversions that it takes a tenth of the time of prefill.
"""

from ..spec import FLOATING, Implementation, Kernel
from .partition import partition
from .reference import fake, silu_and_mul

KERNEL = Kernel(
    name="silu_and_mul",
    version=1,
    schema="silu_and_mul(Tensor values) -> Tensor",
    partition=partition,
    reference=silu_and_mul,
    fake=fake,
    dtypes={"values": FLOATING},
    implementations=(Implementation.in_folder(__name__, "cpu", "native", uniform=True),),
    source="vllm/model_executor/layers/activation.py SiluAndMul",
)

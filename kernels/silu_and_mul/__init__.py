"""`fxhlo.silu_and_mul`: the gated activation between a model's two big products, silu(gate) * up over halves of a row.

XLA's CPU backend takes a logistic function of bfloat16 apart into so many conversions that it costs a tenth of a prompt.
"""

from ..spec import FLOATING, Implementation, Kernel
from .reference import fake, silu_and_mul

KERNEL = Kernel(
    name="silu_and_mul",
    version=1,
    schema="silu_and_mul(Tensor values) -> Tensor",
    reference=silu_and_mul,
    fake=fake,
    dtypes={"values": FLOATING},
    implementations=(Implementation.in_folder(__name__, "cpu", "native"),),
    source="vllm/model_executor/layers/activation.py SiluAndMul",
)

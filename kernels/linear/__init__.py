"""`fxhlo.linear`: a product with a weight as torch lays it out, [out, in], accumulated in float32.

On the CPU a kernel of ours reads the weight as it lies, once, and gives every row the same bits in any batch. Elsewhere it is
the reference's product, whose float32 asks for full precision (lowering/build.py).
"""

from ..spec import FLOATING, Implementation, Kernel
from .reference import fake, linear

KERNEL = Kernel(
    name="linear",
    version=1,
    schema="linear(Tensor values, Tensor weight, Tensor? bias) -> Tensor",
    reference=linear,
    fake=fake,
    dtypes=dict.fromkeys(("values", "weight", "bias"), FLOATING),
    implementations=(Implementation.in_folder(__name__, "cpu", "native"),),
    source="aten::linear",
)

"""`fxhlo.linear`: a matmul with a weight in torch's layout, [out, in], accumulated in float32.

On CPU a native kernel reads the weight once, in its own layout, and returns the same bits for a row in any batch. Elsewhere the
reference's matmul is used, with full precision for float32 (lowering/build.py).

`used` is the number of rows that anybody reads. An implementation may leave out the others, and what it gives for them is its own.
"""

from ..spec import FLOATING, Implementation, Kernel
from .partition import partition
from .reference import fake, linear

KERNEL = Kernel(
    name="linear",
    version=2,
    schema="linear(Tensor values, Tensor weight, Tensor? bias, Tensor? used=None) -> Tensor",
    partition=partition,
    reference=linear,
    fake=fake,
    dtypes=dict.fromkeys(("values", "weight", "bias"), FLOATING) | {"used": ("int32",)},
    implementations=(Implementation.in_folder(__name__, "cpu", "native", uniform=True),),
    source="aten::linear",
)

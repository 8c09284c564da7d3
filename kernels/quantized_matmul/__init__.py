"""`fxhlo.quantized_matmul`: a matmul with an 8-bit or 4-bit weight and a scale per output."""

from ..spec import FLOAT8, FLOATING, Implementation, Kernel
from .cases import cases
from .reference import fake, quantized_matmul

KERNEL = Kernel(
    name="quantized_matmul",
    version=1,
    schema="quantized_matmul(Tensor values, Tensor weight, Tensor scale, *, int bits) -> Tensor",
    reference=quantized_matmul,
    fake=fake,
    dtypes={"values": FLOATING, "weight": (*FLOAT8, "int8"), "scale": ("float32",)},
    implementations=(Implementation.in_folder(__name__, "any", "xla"),),
    cases=cases,
    source="Dettmers et al., LLM.int8(), 2022, section 2, with the values left as they are",
)

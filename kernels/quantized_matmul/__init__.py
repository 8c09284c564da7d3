"""`fxhlo.quantized_matmul`: a product with a weight of 8 or 4 bits and a scale per output."""

from ..spec import FLOAT8, FLOATING, Implementation, Kernel
from .cases import cases
from .reference import fake, quantized_matmul


def _lower(*operands, **named):
    from .xla import quantized_matmul as lower  # jax only where it is wanted

    return lower(*operands, **named)


def _supports(operands, attributes):
    values, weight = operands[:2]
    if attributes["bits"] not in (4, 8):
        return f"a weight of {attributes['bits']} bits; 4 and 8 are known"
    if weight.dtype.name not in (("int8",) if attributes["bits"] == 4 else ("int8", "float8_e4m3fn", "float8_e5m2")):
        return f"a weight of {weight.dtype} with {attributes['bits']} bits"
    inputs = weight.shape[1] * 8 // attributes["bits"]
    return None if values.shape[1] == inputs else f"values have {values.shape[1]} inputs, the weight {inputs}"


KERNEL = Kernel(
    name="quantized_matmul",
    version=1,
    schema="quantized_matmul(Tensor values, Tensor weight, Tensor scale, *, int bits) -> Tensor",
    reference=quantized_matmul,
    fake=fake,
    dtypes={"values": FLOATING, "weight": (*FLOAT8, "int8"), "scale": ("float32",)},
    implementations=(Implementation("any", "xla", _lower, _supports),),
    cases=cases,
    source="Dettmers et al., LLM.int8(), 2022, section 2, with the values left as they are",
)

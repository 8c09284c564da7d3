"""`fxhlo.sample`: greedy, or temperature, min-p, top-k, top-p and a seeded draw per request."""

from ..spec import FLOATING, Implementation, Kernel
from . import cpu, tpu
from .cases import cases
from .reference import fake, sample


def _lower(*operands, **named):
    from .xla import sample as lower  # jax only where it is wanted

    return lower(*operands, **named)


def supports(operands, attributes):
    size = operands[0].shape[1]
    if operands[0].dtype.name not in ("float32", "bfloat16"):
        return f"logits are {operands[0].dtype}, not float32 or bfloat16"
    if not 0 < size <= 2**19:
        return f"a vocabulary of {size} tokens could overflow the 32-bit sums of 2**19"
    return None


KERNEL = Kernel(
    name="sample",
    version=1,
    schema="sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seeds, "
    "Tensor steps) -> Tensor",
    reference=sample,
    fake=fake,
    dtypes={
        "logits": FLOATING[:3],
        **dict.fromkeys(("temperature", "top_p", "min_p"), ("float32",)),
        **dict.fromkeys(("top_k", "seeds", "steps"), ("int32",)),
    },
    implementations=(
        Implementation("cpu", "native", cpu.sample, cpu.supports),
        Implementation("tpu", "pallas", tpu.sample, tpu.supports),
        Implementation("any", "xla", _lower, supports),
    ),
    cases=cases,
    source="vllm/v1/sample/sampler.py and ops/topk_topp_sampler.py of vLLM 0.32.0; Threefry: Salmon et al., SC 2011",
)

"""`fxhlo.logprobs`: log-probabilities of the chosen token and of the best ones, and the rank of the chosen."""

from ..spec import FLOATING, Implementation, Kernel
from . import cpu, tpu
from .cases import cases
from .reference import fake, logprobs


def _lower(*operands, **named):
    from .xla import logprobs as lower  # jax only where it is wanted

    return lower(*operands, **named)


def _supports(operands, attributes):
    size = operands[0].shape[1]
    return None if attributes["count"] <= size else f"{attributes['count']} tokens asked of a vocabulary of {size}"


KERNEL = Kernel(
    name="logprobs",
    version=1,
    schema="logprobs(Tensor logits, Tensor tokens, Tensor enabled, *, int count) -> (Tensor, Tensor, Tensor)",
    reference=logprobs,
    fake=fake,
    dtypes={"logits": FLOATING[:3], "tokens": ("int32",), "enabled": ("int32",)},
    implementations=(
        Implementation("cpu", "native", cpu.logprobs, cpu.supports),
        Implementation("tpu", "pallas", tpu.logprobs, tpu.supports),
        Implementation("any", "xla", _lower, _supports),
    ),
    cases=cases,
    source="vllm/v1/sample/sampler.py of vLLM 0.32.0, logprobs_mode raw_logprobs",
)

"""`fxhlo.process_logits`: allowed tokens, logit bias, and repetition, frequency and presence penalties."""

from ..spec import FLOATING, Implementation, Kernel
from . import cpu, tpu
from .cases import cases
from .reference import fake, process_logits


def _lower(*operands, **named):
    from .xla import process_logits as lower  # jax only where it is wanted

    return lower(*operands, **named)


KERNEL = Kernel(
    name="process_logits",
    version=1,
    schema="process_logits(Tensor logits, Tensor flags, Tensor allowed_mask, Tensor bias_ids, Tensor bias_values, "
    "Tensor seen_ids, Tensor seen_counts, Tensor repetition_penalty, Tensor frequency_penalty, "
    "Tensor presence_penalty) -> Tensor",
    reference=process_logits,
    fake=fake,
    dtypes={
        "logits": FLOATING[:3],
        **dict.fromkeys(("flags", "allowed_mask", "bias_ids", "seen_ids", "seen_counts"), ("int32",)),
        **dict.fromkeys(("bias_values", "repetition_penalty", "frequency_penalty", "presence_penalty"), ("float32",)),
    },
    implementations=(
        Implementation("cpu", "native", cpu.process_logits, cpu.supports),
        Implementation("tpu", "pallas", tpu.process_logits, tpu.supports),
        Implementation("any", "xla", _lower),
    ),
    cases=cases,
    source="vllm/v1/sample/sampler.py, ops/penalties.py and logits_processor/builtin.py of vLLM 0.32.0",
)
